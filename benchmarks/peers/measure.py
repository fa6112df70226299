"""One peer, in its environment: whether it agrees with metaopt, and how long both take.

    python -m benchmarks.peers.measure NAME FILE

writes what was found to FILE, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.case import CASES, Case
from benchmarks.peers.peer import Loop, Peer, load
from benchmarks.turns import ratio, seconds

TOLERANCE = 1e-8
"""Largest relative difference of hypergradients that are timed."""

COMPARED = 6
"""Outer steps that must agree."""

TURNS = 21


def difference(one: Iterator[Tensor], other: Iterator[Tensor], steps: int = COMPARED) -> float:
    """Return the largest relative difference of two loops: of phi_1 and of all updates after it.

    Args:
        one, other: yield phi after each outer step, by gradient descent at the same rate.
        steps: how many are compared, >= 2.
    """
    pairs = [
        [torch.as_tensor(phi).detach().clone() for phi in (next(one), next(other))]
        for _ in range(steps)
    ]
    moves = pairs[:1] + [
        [new - old for new, old in zip(after, before, strict=True)]
        for before, after in pairwise(pairs)
    ]
    return max(float((a - b).norm() / a.norm()) for a, b in moves)


def compare(case: Case, size: str, loop: Loop, turns: int = TURNS) -> dict[str, Any]:
    """Return the difference of a peer's outer steps from metaopt's and, if they agree, the times.

    Each is timed from the start of a run of its own.
    """

    def both() -> dict[str, Iterator[Tensor]]:
        peer = loop(case.problem[size](), case.outer_lr)
        return {"metaopt": case.by_metaopt(size), "peer": peer}

    one, other = both().values()
    error = difference(one, other)
    if not error <= TOLERANCE:  # also of NaN
        return {"difference": error}
    times = seconds(both(), turns, case.steps[size])
    share = ratio(times["metaopt"], times["peer"])
    return {
        "difference": error,
        **{f"{name}_ms": 1e3 * statistics.median(each) for name, each in times.items()},
        "ratio": share.middle, "low": share.low, "high": share.high,
    }  # fmt: skip


def rows(peer: Peer, run: Callable[[Case, str, Loop], dict[str, Any]] = compare) -> list[Any]:
    """Return what was found in each case that a peer has, at each size."""
    results = []
    for name, loop in peer.loops.items():
        for size in CASES[name].problem:
            try:
                row = run(CASES[name], size, loop)
            except Exception as error:
                traceback.print_exc()
                row = {"error": f"{type(error).__name__}: {error}"}
            results.append({"case": name, "size": size, **row})
    return results


def versions(peer: Peer) -> dict[str, str]:
    """Return the versions of what a peer brings, and of torch and numpy."""
    names = [r.partition("=")[0] for r in peer.requirements]
    return {name: metadata.version(name) for name in dict.fromkeys([*names, "torch", "numpy"])}


def main() -> None:
    torch.set_num_threads(1)
    # TorchOpt computes Adam's bias correction in the default dtype, whatever the weights are.
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore", FutureWarning)  # libraries that are older than torch
    name, path = sys.argv[1:]
    peer = load(name)
    importlib.import_module(peer.module)
    load_before = os.getloadavg()[0]
    result = {"versions": versions(peer), "rows": rows(peer)}
    result["load"] = [load_before, os.getloadavg()[0]]
    Path(path).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
