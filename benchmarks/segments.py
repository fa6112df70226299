"""Time and peak memory of unrolling 100 steps of a 1.3 M-parameter network, by segments.

Each row runs in a fresh process. resident: growth of the process's peak resident memory over that
of one inner step; live: peak of the storage of live tensors, without the allocator's gaps.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.mlp import RowWeights
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator
from metaopt.estimators import Unroll
from metaopt.testing.meter import PeakMemory

SETTINGS: dict[str, dict[str, Any]] = {
    **{str(count): {"segments": count} for count in (1, 4, 10, 25)},
    "auto": {"schedule": "segments"},
    "auto, 160 MiB": {"memory_budget": 160 * 2**20},
    "auto, 300 MiB": {"memory_budget": 300 * 2**20},
}

# Freed tensors go back to the system at once, so that resident memory is what is in use.
RETURNING = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, path: str, steps: int) -> None:
    torch.set_num_threads(1)
    problem = RowWeights()
    phi = problem.init_outer(generator(0))
    inner = InnerLoop(problem).start(phi, None, 0)
    Unroll(1)(InnerLoop(problem), phi, tree.clone(inner), 0)
    unroll = Unroll(steps, **SETTINGS[name])
    before, started = peak_mib(), time.thread_time()
    grad = unroll(InnerLoop(problem), phi, tree.clone(inner), 0)[1].grad
    result = {"seconds": time.thread_time() - started, "resident": peak_mib() - before}
    with PeakMemory() as meter:
        unroll(InnerLoop(problem), phi, inner, 0)
    torch.save({**result, "live": meter.peak / 2**20, "grad": grad}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(*chosen.measure, chosen.steps)
        return
    print("segments      resident  of one  live MiB  of one   seconds  of one  gradient differs by")
    whole = None
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(SETTINGS):
            path = Path(folder, f"{i}.pt")
            command = [sys.executable, "-m", "benchmarks.segments", "--steps", str(chosen.steps)]
            subprocess.run([*command, "--measure", name, str(path)], check=True, env=RETURNING)
            result = torch.load(path, weights_only=True)
            whole = whole or result
            gap = tree.norm(tree.add(result["grad"], whole["grad"], -1.0))
            shown = "".join(
                f"{result[k]:10.{digits}f}{result[k] / whole[k]:8.2f}"
                for k, digits in (("resident", 0), ("live", 0), ("seconds", 2))
            )
            print(f"{name:<13}{shown}  {float(gap / tree.norm(whole['grad'])):.1e}")


if __name__ == "__main__":
    main()
