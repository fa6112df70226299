"""One run in two processes of torchrun: as one process, and what becomes of it when one fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import call, fork

from metaopt.files.tensors import read_tensors

slow = pytest.mark.slow

MODULE = """
import os
import signal
import time
from pathlib import Path

import torch
from torch.nn.functional import dropout

from metaopt import SGD, GradientProblem

RANK, WORLD = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")


class Mine(GradientProblem):
    def __init__(self, fault="none", seed=0):
        self.fault, self.seed, self.inner_optimizer = fault, seed, SGD(lr=0.1)
        self.x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)).double()

    def init_outer(self, generator):
        start = float(RANK) if self.fault == "start" else 0.0
        return {"log_penalty": torch.full((6,), start, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"theta": torch.zeros(6, dtype=torch.float64)}

    def inner_batch(self, draw):
        if os.environ.get("FAULT") == "signal" and draw.outer_step == 20:
            while not Path("signalled").exists():  # by one of the processes, whatever the machine
                if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # metaopt's handler has run
                    Path("signalled").touch()
                time.sleep(0.01)
        at = f"{self.fault}:{RANK}:{draw.outer_step}"
        if os.environ.get("FAULT") == at and WORLD == "2":
            if self.fault == "memory":
                raise MemoryError("of this process alone")
            if self.fault == "kill":
                os.kill(os.getpid(), 9)
        return self.x[torch.randperm(8, generator=draw.generator)[:4]]

    outer_batch = inner_batch

    def loss(self, inner, x):
        if self.fault == "noise":
            torch.save(dropout(torch.ones(4, 6)), f"mask_{WORLD}_{RANK}.pt")
            x = dropout(x)
        return ((x @ inner["theta"] - x.sum(1)) ** 2).mean()

    def inner_loss(self, outer, inner, x):
        return self.loss(inner, x) + (outer["log_penalty"].exp() * inner["theta"] ** 2).sum()

    def outer_loss(self, outer, inner, x):
        return self.loss(inner, x)

    def metrics(self, outer, inner):
        return {"loss": self.loss(inner.params, self.x)}
"""

YAML = """
# @package _global_
name: mine
outer_steps: 40
inner_steps: 2
eval_every: 10
checkpoint_every: 10
outer_lr: 0.05
problem:
  _target_: mine.Mine
  fault: none
  seed: ${seed}
"""


class Torchrun:
    """The command in two processes of torchrun, which watches them.

    Args:
        folder: where it runs.
        arguments: of the command.
        fault: what goes wrong, in which process, at which outer step; see `MODULE`.
    """

    def __init__(self, folder: Path, *arguments: str, fault: str = "") -> None:
        self.folder = folder
        self.files = [(folder / name).open("w") for name in ("out.txt", "err.txt")]
        single = {"OMP_NUM_THREADS": "1", "FAULT": fault, "GIT_DIR": str(folder / "none")}
        # A port of its own, and a session of its own: at the end all of it can be killed.
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        self.process = subprocess.Popen(
            [sys.executable, *launch, "-m", "metaopt", *arguments],
            cwd=folder, env=os.environ | single, start_new_session=True,
            stdout=self.files[0], stderr=self.files[1],
        )  # fmt: skip

    def end(self, timeout: float = 400.0) -> int:
        return self.process.wait(timeout)

    def said(self) -> str:
        """Return its messages: torchrun's own follow them."""
        return (self.folder / "err.txt").read_text().partition("\nTraceback (most")[0]

    def printed(self) -> str:
        return (self.folder / "out.txt").read_text()

    def of_rank(self, rank: int) -> int:
        """Return the process id of a rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        ranks = {}
        for pid in map(int, children.split()):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks |= {int(v[5:]): pid for v in variables if v.startswith(b"RANK=")}
        return ranks[rank]

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
            for rank in (0, 1):
                os.kill(self.of_rank(rank), signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError, KeyError):
            pass  # it has ended
        self.process.wait()
        for file in self.files:
            file.close()


class Ranks:
    """The command in two processes as torchrun starts them, where nothing is to be watched.

    They are forked from one that has imported the packages: torchrun starts Python three times.

    Args:
        folder, arguments: as above.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        for name in ("out.txt", "err.txt"):
            (folder / name).unlink(missing_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        group = {
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": port, "OMP_NUM_THREADS": "1",
            "GIT_DIR": str(folder / "none"),
        }  # fmt: skip
        self.processes = [
            fork(one_rank, str(folder), {**group, "RANK": rank, "LOCAL_RANK": rank}, *arguments)
            for rank in ("0", "1")
        ]

    def end(self, timeout: float = 400.0) -> int:
        """Return 0 where both have ended well."""
        for process in self.processes:
            process.join(timeout)
        return int(any(process.exitcode != 0 for process in self.processes))

    def said(self) -> str:
        return (self.folder / "err.txt").read_text()

    def printed(self) -> str:
        return (self.folder / "out.txt").read_text()


def one_rank(folder: str, environment: dict[str, str], *arguments: str) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for stream, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    call(*arguments)


Start = Callable[..., Torchrun]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    commands: list[Torchrun] = []

    def run(folder: Path, *arguments: str, **kwargs: Any) -> Torchrun:
        commands.append(Torchrun(folder, *arguments, **kwargs))
        return commands[-1]

    yield run
    for command in commands:
        command.close()


def mine(folder: Path) -> Path:
    (folder / "mine.py").write_text(MODULE)
    (folder / "conf/problem").mkdir(parents=True)
    (folder / "conf/problem/mine.yaml").write_text(YAML)
    return folder


MINE = ("--config-dir=conf", "problem=mine", "figures=false", "log_every=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a run in two processes gives that nothing stops, by kind of fault."""
    folder = mine(tmp_path_factory.mktemp("whole"))
    command = Ranks(
        folder, "-m", *MINE, "problem.fault=memory,kill,signal", "hydra.sweep.dir=cells"
    )
    assert command.end() == 0, command.said()
    return {fault: content(next(folder.glob(f"cells/*{fault}*"))) for fault in FAULTS}


FAULTS = ("memory", "kill", "signal")


def content(folder: Path) -> Any:
    """Return the result of a run without its overrides, and its tensors."""
    result = json.loads((folder / "result.json").read_text())
    return json.dumps({**result, "overrides": []}), read_tensors(folder / "final.pt")


def assert_equal(folder: Path, other: Any) -> None:
    text, tensors = content(folder)
    assert text == other[0]
    for level in ("outer", "inner"):
        torch.testing.assert_close(tensors[level], other[1][level], rtol=0, atol=0)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in folder.glob("checkpoints/step_*.pt"))


def logged(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["outer_step"] for line in lines]


# As one process.


def values(folder: Path) -> dict[str, torch.Tensor]:
    result = json.loads((folder / "result.json").read_text())
    numbers = {**result["metrics"], **result["budget"]}
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}


@slow
def test_two_processes_have_the_results_of_one(start, metaopt, tmp_path):
    ridge = ("-m", "problem=ridge", "estimator=unroll,implicit", "outer_steps=20")
    digits = (
        "-m", "problem=meta_pseudo_labels", "data@problem.data=meta_pseudo_labels/digits",
        "method=meta_pseudo_labels/soft,meta_pseudo_labels/loss_difference", "outer_steps=10",
        "eval_every=5", "log_every=1", "figures=false",
    )  # fmt: skip
    for name, words, command in (("ridge", ridge, start), ("digits", digits, Ranks)):
        (tmp_path / name).mkdir()
        two = command(tmp_path / name, *words, "hydra.sweep.dir=../two")
        assert two.end() == 0, two.printed() + two.said()
        assert "2 cells: 2 computed" in two.printed()
        assert metaopt(*words, "hydra.sweep.dir=one").code == 0
    for one in Path("one").iterdir():
        if not one.is_dir():
            continue
        other = Path("two", one.name)
        assert {p.name for p in one.rglob("*")} == {p.name for p in other.rglob("*")}
        results = [json.loads(Path(f, "result.json").read_text()) for f in (one, other)]
        assert results[0]["config_hash"] == results[1]["config_hash"]
        assert [r["processes"] for r in results] == [1, 2]
        assert [*map(type, results[0]["budget"].values())] == [
            *map(type, results[1]["budget"].values())
        ]
        assert logged(one) == logged(other) == list(range(1, results[0]["outer_steps"] + 1))
        tolerance = 1e-12 if "ridge" in one.name else 1e-5
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(values(other), values(one), **close)
        first, second = (read_tensors(f / "final.pt") for f in (one, other))
        for level in ("outer", "inner"):
            torch.testing.assert_close(second[level], first[level], **close)
    again = Ranks(tmp_path / "ridge", *ridge, "hydra.sweep.dir=../one")
    assert again.end() == 0
    assert again.printed().count("already finished, computed by 1 processes") == 2


# A process that fails, and signals.


@slow
@pytest.mark.parametrize("fault", ["memory", "kill"])
def test_a_process_that_fails_ends_the_run_which_can_go_on(start, whole, tmp_path, fault):
    words = (*MINE, f"problem.fault={fault}", "hydra.run.dir=run")
    command = start(mine(tmp_path), *words, fault=f"{fault}:1:25")
    assert command.end() == 1
    message = {"memory": "process 1 failed: Out of memory: of this", "kill": "another process was"}
    times = command.said().count(f"metaopt: {message[fault]}")
    assert times == command.said().count("metaopt: ")
    assert times == 1 or fault == "kill"  # torchrun may have ended process 0 before it spoke
    assert "GLHF" not in command.said()
    run = tmp_path / "run"
    assert not (run / "result.json").exists()
    assert steps(run) == [10, 20]
    assert [read_tensors(p)["engine"]["outer_step"] for p in sorted(run.glob("*/*.pt"))] == [10, 20]
    (resume,) = re.findall(r"^  (torchrun .*)$", command.said(), re.MULTILINE) or [
        "torchrun --standalone --nproc_per_node=2 -m metaopt --config-dir conf resume=run"
    ]
    rest = shlex.split(resume)[5:]
    again = Ranks(tmp_path, *rest)
    assert again.end() == 0, again.said()
    assert_equal(run, whole[fault])


@slow
@pytest.mark.parametrize("whom", ["torchrun", "process 1", "process 0"])
def test_a_signal_stops_all_processes_after_the_same_step(start, whole, tmp_path, whom):
    words = (*MINE, "problem.fault=signal", "hydra.run.dir=run")
    command = start(mine(tmp_path), *words, fault="signal")
    log = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 300
    while not log.exists() or len(log.read_text().splitlines()) < 12:
        assert command.process.poll() is None, command.said()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    whose = command.process.pid if whom == "torchrun" else command.of_rank(int(whom[-1]))
    os.kill(whose, signal.SIGTERM)
    assert command.end() == 1
    (stopped,) = map(int, re.findall(r"Stopped: SIGTERM after outer step (\d+)", command.said()))
    assert 12 <= stopped <= 21
    assert steps(tmp_path / "run")[-1] == stopped
    assert logged(tmp_path / "run")[-1] == stopped
    again = Ranks(tmp_path, "--config-dir=conf", "resume=run")
    assert again.end() == 0, again.said()
    assert_equal(tmp_path / "run", whole["signal"])


# Mistakes.


@slow
def test_cells_that_fail_do_so_once_and_leave_the_others(start, tmp_path):
    rates = "problem.inner_optimizer.lr=1e200,-1,0.05"
    words = ("-m", "problem=ridge", "debug=tiny", "figures=false", "hydra.sweep.dir=cells")
    command = start(tmp_path, *words, rates)
    assert command.end() == 1
    assert "3 cells: 1 computed" in command.printed()
    assert "2 failed" in command.printed()
    assert command.said().count("metaopt: ") == 2
    assert command.said().count("is nan at outer step") + command.said().count("is inf at") == 1
    assert command.said().count("lr=-1") == 1
    assert len([*tmp_path.glob("cells/*/result.json")]) == 1


@slow
def test_mistakes_are_said_once_before_a_folder_is_made(start, tmp_path):
    folder = mine(tmp_path)
    for words, message in (
        (("problem=ridge", "lr=3"), "There is no key 'lr'. It is optimizer.lr or"),
        ((*MINE, "problem.fault=start"), "phi differs between the processes after outer step 1"),
    ):
        command = start(folder, *words)
        assert command.end() == 1
        assert command.said().count("metaopt: ") == command.said().count(message) == 1
        assert not [*tmp_path.glob("runs/*/*/*")]


# What results depend on.


@slow
def test_a_run_that_depends_on_the_processes_says_so_and_goes_on_with_as_many(
    metaopt, monkeypatch, tmp_path
):
    noise = (*MINE, "problem.fault=noise", "outer_steps=4")
    command = Ranks(mine(tmp_path), *noise, "hydra.run.dir=two")
    assert command.end() == 0, command.said()
    masks = [torch.load(tmp_path / f"mask_2_{rank}.pt") for rank in (0, 1)]
    assert not torch.equal(*masks)
    monkeypatch.syspath_prepend(tmp_path)
    assert metaopt(*noise, "hydra.run.dir=one").code == 0
    configs = [yaml.safe_load(Path(f, "config.yaml").read_text()) for f in ("one", "two")]
    assert configs[1] == {**configs[0], "processes": 2}
    hashes = [json.loads(Path(f, "result.json").read_text())["config_hash"] for f in ("one", "two")]
    assert hashes[0] != hashes[1]
    done = metaopt("--config-dir=conf", "resume=two", "outer_steps=6")
    assert done.code == 1
    assert "was started with 2 processes, on which its results depend" in done.err
    done = metaopt(*noise, "hydra.run.dir=two")
    assert "processes: 2 -> absent" in done.err
    own = Ranks(tmp_path, *MINE, "outer_steps=4", "ranks=own", "hydra.run.dir=own")
    assert own.end() == 0, own.said()
    config = yaml.safe_load(Path("own/config.yaml").read_text())
    assert (config["ranks"], config["processes"]) == ("own", 2)


@slow
def test_the_first_process_alone_searches(tmp_path):
    pytest.importorskip("optuna", minversion="4")
    command = Ranks(
        tmp_path, "-m", "hydra/sweeper=tune", "problem=ridge", "debug=tiny", "figures=false",
        "outer_lr=interval(1e-3,1e-1)", "objective=eval/test_loss", "hydra.sweeper.n_trials=2",
    )  # fmt: skip
    assert command.end() == 0, command.said()
    assert "2 trials, 2 of them in" in command.printed()
    assert len([*tmp_path.glob("results/ridge/*/result.json")]) == 2
