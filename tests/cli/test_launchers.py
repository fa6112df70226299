"""Launchers in processes of their own: workers that are killed, and cells that raise."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from metaopt.cli import folders
from metaopt.cli.cells import HEARTBEATS
from metaopt.report.command import main as report

pytestmark = pytest.mark.slow

METAOPT = (sys.executable, "-m", "metaopt")

LAUNCHERS = {
    "joblib": ("joblib", ("hydra.launcher.n_jobs=2",)),
    "submitit_local": ("submitit", ()),
    "ray": (
        "ray",
        (
            "hydra.launcher.ray.init.address=local",
            "+hydra.launcher.ray.init.num_cpus=2",
            "+hydra.launcher.ray.init.include_dashboard=false",
            "+hydra.launcher.ray.init._node_ip_address=127.0.0.1",
        ),
    ),
}
"""By name, the package of each launcher and further overrides."""

ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled",
}  # fmt: skip

SWEEP = (
    "--config-dir", "conf", "-m", "problem=mortal", "seed=0,1,2", "outer_steps=40",
    "inner_steps=5", "checkpoint_every=8", "figures=false",
)  # fmt: skip

MORTAL = """
import os
import signal
import time
from pathlib import Path

from metaopt.problems.examples import Ridge


class Mortal(Ridge):
    def __init__(self, seed, **rest):
        super().__init__(seed=seed, **rest)
        self.seed = seed

    def inner_batch(self, draw):
        for kill in Path("kills").glob(f"{self.seed} {draw.outer_step} {draw.inner_step} *"):
            finished = int(kill.name.split()[-1])
            while len([*Path("results").glob("ridge/*/result.json")]) < finished:
                time.sleep(0.01)
            kill.rename(Path("killed", str(os.getpid())))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().inner_batch(draw)
"""
"""Ridge, whose process kills itself where a file says so: `seed outer_step inner_step finished`.

It waits until so many cells have finished: on any machine, whatever the launcher computes at once.
Only one seed may wait, since a launcher of two workers needs the other one for the rest.
"""


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> list[str]:
    """Overrides that choose a launcher, where it is installed."""
    name = request.param
    package, overrides = LAUNCHERS[name]
    pytest.importorskip(package, reason=f"hydra/launcher={name} is not installed")
    pytest.importorskip(f"hydra_plugins.hydra_{package}_launcher")
    return [f"hydra/launcher={name}", *overrides]


class Started:
    """A command in a group of processes of its own, which ends with the block."""

    def __init__(self, folder: Path, *arguments: str, name: str = "") -> None:
        environment = {**ENVIRONMENT, "GIT_DIR": str(folder / "none")}
        self._out, self._err = folder / f"out{name}.txt", folder / f"err{name}.txt"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*METAOPT, *arguments], cwd=folder, env=environment, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        return self.process.wait(300)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()


def ended(folder: Path, *arguments: str) -> Started:
    with Started(folder, *arguments) as command:
        command.end()
    return command


def results(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the results of a sweep, by the folder of a cell, and when they were written."""
    paths = sorted(folder.glob("results/ridge/*/result.json"))
    return {p.parent.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}


def table(folder: Path) -> pd.DataFrame:
    """Return the report's table, times left out."""
    assert report([str(folder / "results/ridge")]) == 0
    whole = pd.read_csv(folder / "results/ridge/report/table.csv")
    return whole[[name for name in whole if "second" not in name and "time" not in name]]


def write_problem(folder: Path, name: str, python: str) -> None:
    """Write `name`.py with a class `Name` and its config, which is that of ridge otherwise."""
    shipped = (folders.shipped() / "problem/ridge.yaml").read_text()
    target = f"{name}.{name.title()}"
    (folder / "conf/problem").mkdir(parents=True)
    own = shipped.replace("metaopt.problems.examples.Ridge", target)
    (folder / f"conf/problem/{name}.yaml").write_text(own)
    (folder / f"{name}.py").write_text(python)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_problem(folder, "mortal", MORTAL)
    assert ended(folder, *SWEEP).process.returncode == 0
    return folder


def draw_kills(folder: Path) -> int:
    """Write who is to be killed, when; return how often."""
    draw = random.Random(0)
    kills = [(0, 4, 0), (1, 28, 1)]  # seed, least outer step, finished cells
    for name in ("kills", "killed"):
        (folder / name).mkdir()
    for seed, step, finished in kills:
        moment = f"{draw.randrange(step, step + 8)} {draw.randrange(5)}"
        (folder / "kills" / f"{seed} {moment} {finished}").touch()
    return len(kills)


def test_no_finished_cell_is_lost_when_workers_are_killed(
    tmp_path: Path, undisturbed: Path, launcher: Sequence[str]
) -> None:
    write_problem(tmp_path, "mortal", MORTAL)
    kills, status = draw_kills(tmp_path), -1
    before: dict[str, tuple[bytes, int]] = {}
    killed: set[str] = set()
    while status != 0:
        killed_before = killed
        command = ended(tmp_path, *SWEEP, *launcher)
        status = command.process.returncode
        killed = {path.name for path in (tmp_path / "killed").iterdir()}
        after = results(tmp_path)
        assert after.items() >= before.items()  # not lost, and not written again
        before = after
        if "timed out during startup" in command.err:  # Ray, of a busy machine: after 30 seconds
            continue
        assert str(command.process.pid) not in killed
        if status:
            assert killed > killed_before, command.err
            assert "ended before its cells did" in command.err, command.err
            assert "The same command computes what is missing." in command.out
    assert len(killed) == kills
    content, whole = ({k: v[0] for k, v in results(f).items()} for f in (tmp_path, undisturbed))
    assert content == whole
    pd.testing.assert_frame_equal(table(tmp_path), table(undisturbed))
    assert not (tmp_path / "results/ridge" / HEARTBEATS).exists()


def test_two_commands_share_a_sweep_and_one_goes_on_where_the_other_is_killed(
    tmp_path: Path, undisturbed: Path
) -> None:
    write_problem(tmp_path, "mortal", MORTAL)
    for name in ("kills", "killed"):
        (tmp_path / name).mkdir()
    (tmp_path / "kills" / "0 20 1 2").touch()  # the command that has the first cell
    with (
        Started(tmp_path, *SWEEP, name="-one") as one,
        Started(tmp_path, *SWEEP, name="-other") as other,
    ):
        while None in (one.process.poll(), other.process.poll()):
            time.sleep(0.02)
        killed, left = sorted((one, other), key=lambda command: command.end())
    assert [killed.process.returncode, left.process.returncode] == [-signal.SIGKILL, 0]
    assert "Waiting for another command" in left.err
    assert re.search("3 cells: 3 computed in .*, 0 were already finished, 0 failed", left.out)
    content, whole = ({k: v[0] for k, v in results(f).items()} for f in (tmp_path, undisturbed))
    assert content == whole
    assert not (tmp_path / "results/ridge" / HEARTBEATS).exists()


PYTHON = """
import sys
from pathlib import Path

from metaopt.problems.examples import Ridge


class Fragile(Ridge):
    def outer_batch(self, draw):
        if draw.outer_step == 3 and not Path("repaired").exists():
            if self.seed == 1:
                raise RuntimeError("the lab's disk is gone")
            if self.seed == 2:
                sys.exit(7)
        return super().outer_batch(draw)

    def __init__(self, seed, **rest):
        super().__init__(seed=seed, **rest)
        self.seed = seed
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with a problem of one's own, two of whose seeds fail at the fourth outer step."""
    write_problem(tmp_path, "fragile", PYTHON)
    return tmp_path


def test_a_cell_that_raises_is_listed_with_its_command_and_stops_no_other(
    lab: Path, launcher: Sequence[str]
) -> None:
    sweep = (
        "--config-dir", "conf", "-m", "problem=fragile", "seed=0,1,2,3", "outer_steps=6",
        "figures=false", *launcher,
    )  # fmt: skip
    done = ended(lab, *sweep)
    assert done.process.returncode == 1
    assert "4 cells: 2 computed" in done.out
    assert "2 failed." in done.out
    first, second = results(lab)
    assert (first[-6:], second[-6:]) == ("seed=0", "seed=3")
    listed = done.out.partition("Failed, each with the command that runs it alone:\n")[2]
    assert "  RuntimeError: the lab's disk is gone\n    metaopt " in listed
    assert "  SystemExit: 7\n    metaopt " in listed
    commands = [line.strip() for line in listed.splitlines() if line.startswith("    metaopt ")]
    assert len(commands) == 2
    again = ended(lab, *shlex.split(commands[0])[1:], "hydra.run.dir=alone")
    assert again.process.returncode == 1
    assert "metaopt: RuntimeError: the lab's disk is gone" in again.err
    provenance = json.loads((lab / "results/ridge" / first / "provenance.json").read_text())
    assert provenance["config_dirs"] == ["conf"]  # known to the workers as well
    (lab / "repaired").touch()
    rest = ended(lab, *sweep)
    assert rest.process.returncode == 0, rest.err
    assert re.search("4 cells: 2 computed in .*, 2 were already finished, 0 failed", rest.out)


def uncolored(path: Path) -> str:
    return re.sub(r"\x1b\[\d+m", "", path.read_text())


def test_cells_of_a_ray_cluster_that_is_running_are_in_the_folder_of_the_command(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray", reason="hydra/launcher=ray is not installed")
    place = tmp_path / "elsewhere"
    place.mkdir()
    ray = (sys.executable, "-m", "ray.scripts.scripts")
    messages = tmp_path / "ray.txt"
    with messages.open("w") as file:
        head = subprocess.Popen(
            [*ray, "start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false",
             "--port=0", "--node-ip-address=127.0.0.1"],
            cwd=place, env=ENVIRONMENT, stdout=file, start_new_session=True,
        )  # fmt: skip
    try:
        while not (address := re.search(r"--address='([^']+)'", uncolored(messages))):
            assert head.poll() is None, messages.read_text()
            time.sleep(0.1)
        done = ended(
            tmp_path, "-m", "problem=ridge", "debug=tiny", "figures=false", "seed=0,1",
            "hydra/launcher=ray", f"hydra.launcher.ray.init.address={address[1]}",
        )  # fmt: skip
        assert done.process.returncode == 0, done.err
        assert len(results(tmp_path)) == 2
        assert list(place.iterdir()) == []
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait()
