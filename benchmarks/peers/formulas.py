"""SOBA and SABA by benchmark_bilevel's formulas in plain numpy; it is on no package index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numpy_solvers
from benchmarks.peers.peer import Peer
from metaopt.engine.random import Draw
from metaopt.problems.examples import StochasticQuadratic

STEPS = 4_000
"""Steps whose blocks are drawn beforehand, so that drawing takes none of numpy's time."""


def loop(directions: Callable[[Any], Any]) -> Callable[[StochasticQuadratic, float], Any]:
    """Return the outer steps along `directions`, on the blocks that metaopt draws."""

    def steps(problem: StochasticQuadratic, outer_lr: float) -> Iterator[Tensor]:
        draws = [
            (Draw(0, t, 0, t), Draw(0, t, None, t, stream="outer batch")) for t in range(STEPS)
        ]
        blocks = [tuple(int(problem.block(draw)) for draw in pair) for pair in draws]
        data = numpy_solvers.Quadratics(problem)
        for w, _ in numpy_solvers.steps(problem, directions(data), blocks, outer_lr):
            yield torch.from_numpy(w)

    return steps


PEER = Peer(
    "formulas in numpy",
    "numpy",
    (),
    {"SOBA": loop(numpy_solvers.soba), "SABA": loop(numpy_solvers.saba)},
)
