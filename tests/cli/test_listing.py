"""`metaopt ls` and `metaopt show`: the state of each kind of run, on a terminal and in a pipe."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import Command
from rich.cells import cell_len

from metaopt.cli import run_states
from metaopt.cli.jobs import job
from metaopt.files.lock import locked
from metaopt.runs.fitting import shortened
from metaopt.runs.interrupts import Interrupted, Pruned, noting
from metaopt.runs.run import Run

Metaopt = Callable[..., Any]
RUN = ("problem=ridge", "figures=false", "checkpoint_every=2", "outer_steps=4")


def listed(metaopt: Metaopt, folder: str = ".") -> dict[str, dict[str, str]]:
    """Return what `ls` writes into a pipe, by run."""
    done = metaopt("ls", folder)
    assert (done.code, done.err) == (0, "")
    names, *lines = (line.split("\t") for line in done.out.splitlines())
    rows = [dict(zip(names, line, strict=True)) for line in lines]
    return {row["run"]: row for row in rows}


def shown(metaopt: Metaopt, run: str) -> dict[str, str]:
    """Return what `show` writes into a pipe, by name."""
    done = metaopt("show", run)
    assert (done.code, done.err) == (0, "")
    return dict(line.split("\t", 1) for line in done.out.splitlines())


def unfinish(folder: str) -> None:
    Path(folder, "result.json").unlink()


def on_a_terminal(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch, width: int, command: tuple[str, str]
) -> list[str]:
    folder = Path.cwd()
    monkeypatch.setattr(sys.stdout.__class__, "isatty", lambda self: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    lines: list[str] = metaopt(*command).out.splitlines()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    return lines


def test_the_files_of_a_run_are_wrapped_and_its_commands_are_not(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    metaopt(*RUN, "hydra.run.dir=a")
    lines = on_a_terminal(metaopt, monkeypatch, 60, ("show", "a"))
    at = next(i for i, line in enumerate(lines) if line.startswith("files"))
    assert max(map(len, lines[at:])) <= 60
    assert " ".join(line.strip() for line in lines[at:-1]).endswith("timing.json")
    assert any(line.startswith("command") and line.endswith("outer_steps=4") for line in lines)


def test_a_run_that_goes_on_after_an_error_has_not_failed(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted(signal.SIGTERM, 4)

    metaopt(*RUN, "hydra.run.dir=run")
    unfinish("run")
    Path("run/error.log").write_text("OSError: the disk was full\n")
    assert listed(metaopt)["run"]["state"] == "failed"
    monkeypatch.setattr(Run, "_drive", stopped)
    assert metaopt("resume=run").code == 128 + signal.SIGTERM
    row = listed(metaopt)["run"]
    assert (row["state"], row["note"]) == ("interrupted", "SIGTERM after outer step 4")


def test_a_run_that_ends_while_it_is_looked_at_is_finished(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(folder: Path) -> None:  # between the looks at its result and at its lock
        if (folder / "later.json").exists():
            (folder / "later.json").rename(folder / "result.json")

    metaopt(*RUN, "hydra.run.dir=run")
    row = listed(metaopt)["run"]
    monkeypatch.setattr(run_states, "holder", ended)
    for look in (lambda: listed(metaopt)["run"]["state"], lambda: shown(metaopt, "run")["state"]):
        Path("run/result.json").rename("run/later.json")
        assert look() == row["state"] == "finished"


def test_each_state_is_told_from_the_others(metaopt: Metaopt) -> None:
    metaopt(*RUN, "hydra.run.dir=finished")
    for name in ("killed", "interrupted", "pruned", "running"):
        shutil.copytree("finished", name)
        unfinish(name)
    for stop in (Interrupted(signal.SIGTERM, 4), Pruned(4)):
        name = type(stop).__name__.lower()
        with pytest.raises(type(stop)), noting(Path(name)):
            raise stop
    metaopt(*RUN, "problem.inner_optimizer.lr=1e9", "inner_steps=60", "hydra.run.dir=failed")
    with locked(Path("running")):
        rows = listed(metaopt)
        assert shown(metaopt, "running")["next"] == "wait for it"
    assert {name: row["state"] for name, row in rows.items()} == {name: name for name in rows}
    assert len(rows) == 6
    assert rows["running"]["note"] == f"by process {os.getpid()} on {os.uname().nodename}"
    assert rows["interrupted"]["note"] == "SIGTERM after outer step 4"
    assert "NonFiniteError" in rows["failed"]["note"]
    assert (rows["failed"]["step"], rows["killed"]["step"]) == ("0", "4")
    value = json.loads(Path("finished/result.json").read_text())["metrics"]["eval/test_loss"]
    finished = rows["finished"]
    assert (finished["metric"], float(finished["value"])) == ("eval/test_loss", value)
    assert not rows["killed"]["value"], "its log is verified when it is resumed"
    for name in ("finished", "killed"):
        assert rows[name]["command"] == " ".join(["metaopt", *RUN])
    metaopt("resume=interrupted")
    assert not Path("interrupted/.stopped").exists()
    assert shown(metaopt, "interrupted")["state"] == "finished"


@pytest.mark.slow
def test_a_signal_and_a_kill_are_told_apart(tmp_path: Path, metaopt: Metaopt) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        folder = tmp_path / signum.name
        command = Command(
            tmp_path, "problem=ridge", "outer_steps=100000", "figures=false",
            "checkpoint_every=5", f"hydra.run.dir={signum.name}",
        )  # fmt: skip
        while not list(folder.glob("checkpoints/step_*")):
            assert command.running(), command.said()
        assert listed(metaopt)[signum.name]["state"] == "running"
        command.send(signum)
        command.end()
    rows = listed(metaopt)
    assert rows["SIGKILL"]["state"] == "killed"
    assert rows["SIGTERM"]["state"] == "interrupted"
    assert rows["SIGTERM"]["note"] == f"SIGTERM after outer step {rows['SIGTERM']['step']}"


def test_a_pruned_run_is_listed_as_one(metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch) -> None:
    def pruned(*args: Any, **kwargs: Any) -> Any:
        return job(*args, **{**kwargs, "prune": lambda step, value: step == 2})

    monkeypatch.setattr("metaopt.cli.command.job", pruned)
    metaopt(*RUN, "eval_every=2", "objective=eval/test_loss", "hydra.run.dir=run")
    assert listed(metaopt)["run"]["state"] == "pruned"
    assert listed(metaopt)["run"]["step"] == "2"


def test_one_that_ended_early_names_why_and_its_best_checkpoint(metaopt: Metaopt) -> None:
    words = ("early_stopping.metric=eval/test_loss", "early_stopping.patience=1", "eval_every=3")
    metaopt(
        "problem=ridge", "figures=false", "outer_lr=0.3", "outer_steps=60", *words,
        "keep_best=eval/test_loss", "hydra.run.dir=run",
    )  # fmt: skip
    lines = shown(metaopt, "run")
    end = json.loads(Path("run/result.json").read_text())
    best = end["best"]["outer_step"]
    assert lines["state"] == f"finished: {end['stopped']['text']}"
    assert lines["outer steps"] == f"{end['outer_steps']} of 60"
    value = f"{end['best']['value']:.6g}"
    path = f"run/checkpoints/best_{best:08d}.pt"
    assert lines["best"] == f"eval/test_loss {value} at outer step {best}, {path}"
    assert lines["command"].startswith("metaopt problem=ridge figures=false outer_lr=0.3")


@pytest.mark.parametrize(
    "width", [80, *(pytest.param(width, marks=pytest.mark.slow) for width in (60, 120, 200))]
)
def test_a_terminal_of_any_width_has_a_line_for_each_of_hundreds_of_runs(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    metaopt(*RUN, "hydra.run.dir=short")
    config = yaml.safe_load(Path("short/config.yaml").read_text())
    for i in range(200):
        folder = Path(f"sweep/a_name_that_is_longer_than_any_terminal_is_wide_{'x' * 90}_{i}")
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(json.dumps({**config, "seed": i}))
    *lines, last = on_a_terminal(metaopt, monkeypatch, width, ("ls", "."))
    assert len(lines) == 201
    assert last == "201 runs: 200 killed, 1 finished"
    assert max(map(cell_len, lines)) <= width
    short, *long = lines
    assert re.match(r"short +finished +4/4 +eval/test_l(oss|…) +\d\.\d+", short)
    assert ("  metaopt problem=rid" in short) == (width >= 120)
    for line in long:
        assert re.match(r"sweep/a_.*…x*_\d+ +killed +0/4", line), line


def test_names_of_trials_show_what_differs(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    metaopt(*RUN, "hydra.run.dir=a")
    trials = Path("results/ridge/tune")
    trials.mkdir(parents=True)
    drawn = ("0.012906392710974313", "0.0771520432099", "0.0300000012")
    for number in drawn:
        name = f"estimator=implicit,figures=false,inner_steps=10,outer_lr={number},problem=ridge"
        shutil.copytree("a", trials / name)
    head, *lines, _ = on_a_terminal(metaopt, monkeypatch, 80, ("ls", "results"))
    shared = "estimator=implicit,figures=false,inner_steps=10,problem=ridge"
    assert head == shortened(f"{trials}/  names without {shared}", 80)
    assert [line.split()[0] for line in lines] == [
        "outer_lr=0.01291", "outer_lr=0.03", "outer_lr=0.07715",
    ]  # fmt: skip
    head, *lines, _ = on_a_terminal(metaopt, monkeypatch, 200, ("ls", "results"))
    assert head == f"{trials}/"  # names are whole where there is room
    assert lines[0].split()[0].endswith(f"outer_lr={drawn[0]},problem=ridge")
    (line, _) = on_a_terminal(metaopt, monkeypatch, 80, ("ls", str(trials / name)))
    assert line.startswith("results/ridge/")


def test_stops_of_older_runs_are_read(metaopt: Metaopt) -> None:
    metaopt(*RUN, "hydra.run.dir=finished")
    for name, text in (("pruned", "pruned after outer step 4"), ("signal", "SIGTERM after 2")):
        shutil.copytree("finished", name)
        unfinish(name)
        Path(name, ".stopped").write_text(f"{text}\n")
    rows = listed(metaopt)
    assert rows["pruned"]["state"] == "pruned"
    assert (rows["signal"]["state"], rows["signal"]["note"]) == ("interrupted", "SIGTERM after 2")
    path = Path("finished/result.json")
    Path("finished/SHA256SUMS").unlink()
    early = {"stopped": "early stopping: eval/x was not better"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **early}))
    assert listed(metaopt)["finished"]["note"] == "eval/x was not better"


def test_a_long_name_never_runs_into_a_value(metaopt: Metaopt) -> None:
    metaopt(*RUN, "hydra.run.dir=run")
    name = "eval/" + "long_" * 30
    path = Path("run/result.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {name: 0.5}}))
    Path("run/SHA256SUMS").unlink()
    assert shown(metaopt, "run")[name] == "0.5"
    assert listed(metaopt)["run"]["metric"] == name


def test_folders_without_runs_and_other_words_are_refused(metaopt: Metaopt) -> None:
    Path("empty").mkdir()
    assert "There is no run below empty" in metaopt("ls", "empty").err
    assert "There is no folder nowhere" in metaopt("ls", "nowhere").err
    assert "empty is not a run's folder" in metaopt("show", "empty").err
    Path("file").touch()
    assert "There is no folder file" in metaopt("ls", "file").err
