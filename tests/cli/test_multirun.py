"""The cells of a multirun, followed by their files, whatever command computes them."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.conf import HydraConf
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from metaopt.cli import cell_table, folders, launching, mistakes
from metaopt.cli.cell_table import Display
from metaopt.cli.cells import HEARTBEATS, Cell, Multirun, NamedStream, heartbeat_path
from metaopt.cli.jobs import Outcome
from metaopt.cli.launching import (
    FollowedLauncher,
    LauncherError,
    command_of,
    differing,
    failures,
)
from metaopt.files.errors import ConfigError, FolderInUseError
from metaopt.files.lock import is_held, locked, refuse_held
from metaopt.runs.heartbeat import Heartbeat, read_heartbeat


def test_a_worker_that_is_gone_is_seen_and_so_is_its_replacement(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    one = Cell("seed=0", tmp_path, tmp_path / "x.json", "metaopt")
    Heartbeat(one.heartbeat)._write("running")
    record = read_heartbeat(one.heartbeat) or {}
    one.heartbeat.write_text(json.dumps({**record, "pid": child.pid}))
    one.poll()
    assert (one.status, one.alive) == ("killed", False)
    one.heartbeat.write_text(json.dumps({**record, "pid": child.pid, "host": "elsewhere"}))
    one.poll()
    assert one.alive  # until it is silent
    one._changed -= 20
    assert not one.alive
    one.heartbeat.write_text(json.dumps({**record, "time": 1.0}))
    one.poll()
    assert one.alive
    Heartbeat(one.heartbeat).end("finished")
    one.poll()
    assert one.status == "failed"
    assert "its result is not there: workers on other machines must share" in one.message


def test_messages_of_a_cell_begin_with_its_name_and_those_of_the_sweep_do_not() -> None:
    stream = io.StringIO()
    named = NamedStream("seed=0", stream)
    print("a warning\n  of two lines", file=named)
    other = threading.Thread(target=print, args=("2 of 4 done",), kwargs={"file": named})
    other.start()
    other.join()
    print("another", 1, file=named)
    assert stream.getvalue() == (
        "seed=0: a warning\n  of two lines\n2 of 4 done\nseed=0: another 1\n"
    )


class Launcher:
    """Stands in for one of hydra's: calls a function of each cell's folder."""

    def __init__(self, run: Callable[[Path], Any]) -> None:
        self.run = run

    def launch(self, words: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        jobs = []
        for cell in words:
            value = self.run(Path("sweep", cell[0]).absolute())
            failed = isinstance(value, Exception)
            jobs.append(JobReturn(status=JobStatus.FAILED if failed else JobStatus.COMPLETED))
            jobs[-1].return_value = value
        return jobs


def followed(run: Callable[[Path], Any]) -> FollowedLauncher:
    def compose(master: Any, words: Sequence[str]) -> Any:
        hydra = {"sweep": {"dir": "sweep", "subdir": words[0]}, "job": {"num": 0, "id": "0"}}
        config = OmegaConf.create({"objective": "eval/b", "report": {"metrics": ["eval/a"]}})
        config.hydra = OmegaConf.merge(OmegaConf.structured(HydraConf), hydra)
        return config

    hydra = {
        "sweep": {"dir": "sweep"}, "overrides": {"hydra": []}, "job": {"config_name": "train"},
        "runtime": {"choices": {"hydra/launcher": "pigeons"}},
    }  # fmt: skip
    loader, config = SimpleNamespace(load_sweep_config=compose), OmegaConf.create({"hydra": hydra})
    launcher: Any = Launcher(run)
    return FollowedLauncher(launcher, loader, config, Multirun())


def computed(folder: Path) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"metrics": {"eval/a": 1.0, "eval/b": 2.0}}))
    return Outcome("finished", folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Display, "INTERVAL_S", 0.02)
    return tmp_path


def test_what_a_launcher_returns_is_taken_where_no_heartbeat_was_seen(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path) -> Any:
        return computed(folder) if folder.name == "x=0" else ValueError("no luck")

    launcher = followed(run)
    jobs = launcher.launch([["x=0"], ["x=1"]], 0)
    assert [job.return_value.status for job in jobs] == ["finished", "failed"]
    assert jobs[1].return_value.message == "no luck"
    out, err = capsys.readouterr()
    assert out == "1/2  x=0  b 2  a 1\n2/2  x=1  failed: no luck\n"
    assert err == "metaopt: no luck\n"
    assert failures(launcher.multirun).splitlines()[1:] == ["  no luck", "    metaopt x=1"]


def test_a_launcher_that_ends_early_leaves_what_goes_on_to_its_end(here: Path) -> None:
    def late(heart: Heartbeat, folder: Path) -> None:
        with heart.beating():
            time.sleep(0.3)
            computed(folder)
        heart.end("finished")

    def run(folder: Path) -> Any:
        if folder.name == "x=1":
            raise RuntimeError("a worker was killed\nby somebody")
        heart = Heartbeat(heartbeat_path(folder.parent, folder, launcher.multirun.command))
        thread = threading.Thread(target=late, args=(heart, folder))
        thread.start()
        threads.append(thread)
        while not heart.path.exists():
            time.sleep(0.01)

    threads: list[threading.Thread] = []
    launcher = followed(run)
    with launcher.display.shown(), pytest.raises(LauncherError) as error:
        launcher.launch([["x=0"], ["x=1"]], 0)
    assert [cell.status for cell in launcher.multirun.cells] == ["finished", "waiting"]
    assert "hydra/launcher=pigeons ended before its cells did" in str(error.value)
    assert "(RuntimeError: a worker was killed)" in str(error.value)
    assert "the same command computes the rest" in str(error.value)
    threads[0].join()
    assert not Path("sweep", HEARTBEATS).exists()


def test_two_cells_of_one_folder_are_refused_before_one_runs(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"would write to .*sweep/x=0:\n.*label=a\n.*label=b\n"):
        followed(computed).launch([["x=0", "label=a"], ["x=0", "label=b"]], 0)
    assert not Path("sweep").exists()


def test_heartbeats_of_an_earlier_command_are_not_read(here: Path) -> None:
    folder = Path("sweep", "x=0").absolute()
    launcher = followed(computed)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ended = f"{socket.gethostname()}-{child.pid}"
    for command in (launcher.multirun.command, ended):
        Heartbeat(heartbeat_path(folder.parent, folder, command)).end("failed", "long ago")
    launcher.launch([["x=0"]], 0)
    assert launcher.multirun.cells[0].status == "finished"
    assert not Path("sweep", HEARTBEATS).exists()


def test_heartbeats_of_other_commands_are_left_while_they_may_go_on(here: Path) -> None:
    folder = Path("sweep", "x=0").absolute()
    alive = f"{socket.gethostname()}-{os.getppid()}"
    paths = [heartbeat_path(folder.parent, folder, c) for c in (alive, "other-host-1", "old-2")]
    for path in paths:
        Heartbeat(path).end("failed", "of its own")
    os.utime(paths[2], (0, 0))
    launcher = followed(computed)
    launcher.launch([["x=0"]], 0)
    assert launcher.multirun.cells[0].status == "finished"
    assert [path.exists() for path in paths] == [True, True, False]


@pytest.mark.parametrize("finishes", [True, False])
def test_cells_of_another_command_are_awaited_and_run_if_it_leaves_them(
    finishes: bool, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(folder: Path) -> bool:
        before = is_held(folder)
        seen.set()
        return before

    def other(held: threading.Event, seen: threading.Event) -> None:
        place = Path("sweep", "x=1").absolute()
        place.mkdir(parents=True)
        with locked(place):
            held.set()
            seen.wait(60)
            if finishes:
                (place / "result.json").write_text(json.dumps({"metrics": {"eval/a": 9.0}}))

    def run(folder: Path) -> Outcome:
        ran.append(folder.name)
        if (folder / "result.json").exists():
            return Outcome("finished", folder, computed=False)
        try:
            refuse_held(folder)
        except FolderInUseError as error:
            return Outcome("elsewhere", folder, message=str(error), computed=False)
        return computed(folder)

    held, seen, ran = threading.Event(), threading.Event(), list[str]()
    thread = threading.Thread(target=other, args=(held, seen))
    thread.start()
    held.wait(60)
    launcher = followed(run)
    multirun = launcher.multirun
    monkeypatch.setattr(launching, "is_held", asked)
    with launcher.display.shown():
        jobs = launcher.launch([["x=0"], ["x=1"], ["x=2"]], 0)
    thread.join()
    assert ran == ["x=0", "x=1", "x=2", "x=1"]
    assert [job.return_value.status for job in jobs] == ["finished"] * 3
    assert [cell.computed for cell in multirun.cells] == [True, not finishes, True]
    assert multirun.cells[1].metrics["eval/a"] == (9.0 if finishes else 1.0)
    out, err = capsys.readouterr()
    assert [text.split()[:2] for text in out.splitlines()] == [
        ["1/3", "x=0"], ["2/3", "x=2"], ["3/3", "x=1"],
    ]  # fmt: skip
    assert out.count("by another command") == finishes
    assert out.rstrip().endswith("by another command") == finishes
    assert re.fullmatch(r"Waiting for another command: .*x=1 is being written to by .*\n", err)


def test_a_cell_is_left_to_another_command_whatever_heartbeat_comes_late(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path / "heart.json")
    left = Cell("x=0", tmp_path, heart.path, "metaopt x=0")
    heart._write("running")
    left.poll()
    left.leave("process 1 has it")
    left.poll()  # on a disk that is full, or another machine's, the last one is not to be seen
    assert left.status == "elsewhere"
    left.begin()
    heart._write("running")
    left.poll()
    assert left.status == "running"


def test_the_seconds_of_a_cell_are_those_of_the_command_that_computed_it(here: Path) -> None:
    def run(folder: Path) -> Outcome:
        outcome = computed(folder)
        outcome.computed = folder.name == "x=0"
        heart = Heartbeat(heartbeat_path(folder.parent, folder, launcher.multirun.command))
        heart.end(outcome.status, computed=outcome.computed)
        return outcome

    launcher = followed(run)
    launcher.launch([["x=0"], ["x=1"]], 0)
    assert [cell.seconds is None for cell in launcher.multirun.cells] == [False, True]


def test_commands_may_remove_the_folder_of_heartbeats_at_the_same_moment(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(place: Path) -> None:
        remove(place)
        remove(place)

    def scanned(place: Path, pattern: str) -> Any:
        raise FileNotFoundError(place)

    remove = Path.rmdir
    monkeypatch.setattr(Path, "rmdir", twice)
    for glob in (Path.glob, scanned):
        monkeypatch.setattr(Path, "glob", glob)
        Path("sweep", HEARTBEATS).mkdir(parents=True, exist_ok=True)
        launcher = followed(computed)
        launcher.launch([["x=0"]], 0)
        assert launcher.multirun.cells[0].status == "finished"


COMMAND = (
    "metaopt problem=ridge problem.inner_optimizer.lr=0.00017 estimator=finite_difference " * 3
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_table_that_goes_and_lines_that_stay(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen := Terminal())

    def run(folder: Path) -> Outcome:
        while "x=0" not in screen.getvalue():
            heart = Heartbeat(heartbeat_path(folder.parent, folder, launcher.multirun.command))
            heart("ridge", 100, 0).log(10, {})
            heart._write("running")
            time.sleep(0.02)
        print(COMMAND, file=sys.stderr)
        return computed(folder)

    launcher = followed(run)
    with launcher.display.shown():
        launcher.launch([["x=0"]], 0)
    assert "10/100" in screen.getvalue()
    assert "1 running" in screen.getvalue()
    assert COMMAND in screen.getvalue()  # a command is copied as it stands
    assert screen.getvalue().endswith(("\x1b[?25h", "\x1b[2K"))
    assert capsys.readouterr().out.startswith("1/1  x=0  b 2  a 1")


def test_names_are_whole_in_a_log(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    name = f"estimator={'finite_difference' * 6}"
    launcher = followed(computed)
    with launcher.display.shown():
        launcher.launch([[name]], 0)
    assert capsys.readouterr().out.startswith(f"1/1  {name}  b 2  a 1")


def test_a_log_gets_the_heading_now_and_then(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cell_table.Display, "PLAIN_INTERVAL_S", 0.02)
    launcher = followed(lambda folder: (time.sleep(0.3), computed(folder))[1])
    with launcher.display.shown():
        launcher.launch([["x=0"]], 0)
    assert "\nsweep: 0 of 1 done, 1 waiting\n" in "\n" + capsys.readouterr().out


def test_the_command_of_a_cell_is_quoted_and_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = OmegaConf.create({"hydra": {"job": {"config_name": "train"}}})
    words = ["problem=ridge", "limits={gradients: 5}", "label='it\\'s a, b'"]
    assert shlex.split(command_of(config, words)) == ["metaopt", *words]
    assert command_of(config, ["experiment=a/b"]) == "metaopt experiment=a/b hydra.mode=RUN"
    monkeypatch.setattr(folders, "given", lambda: ["my conf"])
    config.hydra.job.config_name = "mine"
    words = shlex.split(command_of(config, ["seed=0"]))
    assert words == ["metaopt", "--config-dir", "my conf", "--config-name", "mine", "seed=0"]


def test_cells_are_named_by_what_differs() -> None:
    batch = [["problem=ridge", "seed=0", "k=1"], ["problem=ridge", "seed=1"]]
    assert differing(batch) == {"seed", "k"}
    assert differing(batch[:1]) == set()


@pytest.mark.parametrize(("name", "extra"), mistakes.LAUNCHERS.items())
def test_a_launcher_that_is_not_installed_names_its_extra(name: str, extra: str) -> None:
    assert f"pip install -e '.[{extra}]'" in mistakes.no_launcher(name)
    assert f"hydra/launcher={name} " in mistakes.no_launcher(name)


def test_a_launcher_that_does_not_exist_is_answered_with_those_that_do(
    metaopt: Callable[..., Any],
) -> None:
    done = metaopt("-m", "problem=ridge", "hydra/launcher=pigeons", "seed=0,1")
    assert done.code == 1
    assert done.err == (
        "metaopt: There is no hydra/launcher=pigeons. Choose one of basic, joblib, "
        "submitit_local, submitit_slurm, ray.\n"
    )
    assert not list(Path().iterdir())
