"""Unrolls through thousands of inner steps: exactness, forward steps, memory, time, and kills.

    python -m benchmarks.long_unrolls [schedules] [length] [transformer] [kills]

schedules: K = 2,000 steps of a network of 1,732 parameters in float64. length: the memory of
revolve for K = 100 and 10,000. transformer: four blocks of width 128 on 8 rows of 128 tokens,
K = 8. kills: one outer step of 2,000 inner steps, killed ten times at random moments.
"""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metaopt
from benchmarks.mlp import RowWeights
from benchmarks.remat import Language
from metaopt import Descent
from metaopt.engine.gradient_problem import GradientProblem, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW, InnerOptimizer
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import Draw, generator
from metaopt.estimators import Unroll
from metaopt.estimators.reverse import passes
from metaopt.estimators.reverse.adjoints import through_steps
from metaopt.estimators.reverse.sizes import sizes
from metaopt.testing.meter import PeakMemory

OPTIMIZERS: dict[str, InnerOptimizer] = {
    "SGD": SGD(lr=0.05), "momentum": SGD(lr=0.02, momentum=0.9), "Adam": Adam(lr=1e-3),
    "AdamW, clipped": AdamW(lr=1e-3, clip_norm=0.05),
}  # fmt: skip
EVERY, KILLS = 50, 10


class Small(RowWeights):
    """The network of the other benchmarks, in float64 and small."""

    def __init__(self, optimizer: InnerOptimizer) -> None:
        super().__init__((16, 32, 32, 4), batch=16)
        self.inner_optimizer = optimizer
        self.x, self.model = self.x.double(), self.model.double()

    def init_outer(self, generator: torch.Generator) -> Tree:
        return {"weight": torch.zeros(self.rows, dtype=torch.float64)}


class Counting(InnerLoop):
    """Counts the steps in place."""

    taken = 0

    def step_(
        self, outer: Tree, inner: GradientState, draw: Draw, batch: Any = None
    ) -> GradientState:
        self.taken += 1
        return super().step_(outer, inner, draw, batch)


def call(problem: GradientProblem, unroll: Unroll) -> tuple[Feedback, int, float]:
    """Return the feedback of an outer step, its steps in place, and its CPU time."""
    loop = Counting(problem)
    phi = problem.init_outer(generator(0))
    start = loop.start(phi, None, 0)
    began = time.thread_time()
    feedback = unroll(loop, phi, start, 0)[1]
    return feedback, loop.taken, time.thread_time() - began


def peak(problem: GradientProblem, unroll: Unroll) -> float:
    """Return the peak memory of an outer step, in KiB."""
    with PeakMemory() as meter:
        call(problem, unroll)
    return float(meter.peak) / 1024


def schedules(steps: int = 2000) -> None:
    settings: dict[str, dict[str, Any]] = {
        "whole": {"schedule": "whole"},
        "segments": {"schedule": "segments"},
        "segments, on disk": {"schedule": "segments", "store": "disk"},
        "revolve, 20 states": {"schedule": "revolve"},
        "revolve, on disk": {"schedule": "revolve", "store": "disk"},
    }  # fmt: skip
    print("| optimizer | schedule | difference | steps in place | gradients a step | seconds |")
    print("|---|---|---|---|---|---|")
    for optimizer, made in OPTIMIZERS.items():
        whole: Tensor | None = None
        for name, setting in settings.items():
            feedback, taken, seconds = call(Small(made), Unroll(steps, **setting))
            assert feedback.grad is not None
            grad = feedback.grad["weight"]
            whole = grad if whole is None else whole
            gap = float((grad - whole).abs().max() / whole.abs().max())
            print(f"| {optimizer} | {name} | {gap:.0e} | {taken:,} | "
                  f"{_gradients(feedback.cost) / steps:.2f} | {seconds:.1f} |")  # fmt: skip


def length(short: int = 100, long: int = 10_000) -> None:
    problem = Small(OPTIMIZERS["AdamW, clipped"])
    print("| K | peak, KiB | steps in place | gradients a step | seconds |")
    print("|---|---|---|---|---|")
    for steps in (short, long):
        unroll = Unroll(steps, schedule="revolve")
        feedback, taken, seconds = call(problem, unroll)
        print(f"| {steps:,} | {peak(problem, unroll):.0f} | {taken:,} | "
              f"{_gradients(feedback.cost) / steps:.2f} | {seconds:.1f} |")  # fmt: skip


def transformer(steps: int = 8) -> None:
    problem = Language(depth=4)
    size = sizes(InnerLoop(problem))
    print(f"A = {size.step / 2**20:.1f} MiB, M = {size.state / 2**20:.1f} MiB")
    print("| segments | peak, MiB | of isqrt(K) | seconds |")
    print("|---|---|---|---|")
    counts = {"isqrt(K)": math.isqrt(steps), "sqrt(K A / M)": size.segments(steps), "whole": 1}
    root = None
    for name, count in counts.items():
        unroll = Unroll(steps, segments=count)
        seconds = min(call(problem, unroll)[2] for _ in range(3))
        mib = peak(problem, unroll) / 1024
        root = root or mib
        print(f"| {name} = {count} | {mib:.0f} | {mib / root:.2f} | {seconds:.1f} |")


def kills(steps: int = 2000) -> None:
    with tempfile.TemporaryDirectory() as place:
        for store in ("memory", "disk"):
            began, whole = time.monotonic(), Path(place, f"whole {store}")
            _child(whole, steps, store).wait()
            duration = time.monotonic() - began
            folder, draw = Path(place, store), random.Random(0)
            for _ in range(KILLS):
                child = _child(folder, steps, store)
                try:  # the first seconds are imports
                    child.wait(duration * draw.uniform(0.2, 0.6))
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
                    child.wait()
            _child(folder, steps, store).wait()
            same = [(x / "result.json").read_bytes() for x in (whole, folder)]
            done = [int(x) for x in folder.with_suffix(".log").read_text().split()]
            lost = len(done) - len(set(done))
            print(f"store={store}: {KILLS} kills, {lost} of {len(done)} adjoint steps twice; "
                  f"the result is {'equal' if same[0] == same[1] else 'ANOTHER'}")  # fmt: skip


def _child(folder: Path, steps: int, store: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "benchmarks.long_unrolls", "child", str(folder), str(steps)]
    return subprocess.Popen([*words, store], stderr=subprocess.DEVNULL)


def child(folder: str, steps: str, store: str) -> None:
    """Run one outer step in a folder, and log each step that is differentiated."""
    log = os.open(Path(folder).with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def logged(*args: Any) -> Any:
        result = through_steps(*args)
        os.write(log, f"{args[4][0]}\n".encode())
        return result

    vars(passes)["through_steps"] = logged
    roles: dict[str, Any] = {
        "problem": Small(OPTIMIZERS["AdamW, clipped"]),
        "estimator": Unroll(
            int(steps), schedule="revolve", store=store, journal_every=EVERY  # type: ignore[arg-type]
        ),
        "optimizer": Descent("adam", lr=0.1), "progress": False,
    }  # fmt: skip
    if Path(folder, "config.yaml").exists():
        metaopt.resume(folder, **roles)
    else:
        metaopt.run(**roles, outer_steps=1, folder=folder, figures=False)


def _gradients(cost: Mapping[str, float]) -> float:
    """Return a cost in gradients, a product with second derivatives being two."""
    return cost["gradients"] + 2 * cost["hvps"]


def main() -> None:
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], None]] = {
        "schedules": schedules,
        "length": length,
        "transformer": transformer,
        "kills": kills,
    }
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
        return
    for name in sys.argv[1:] or parts:
        print(f"\n{name}", flush=True)
        parts[name]()


if __name__ == "__main__":
    main()
