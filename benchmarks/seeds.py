"""Several seeds trained together, against runs of one seed each: CPU seconds and differences.

The last comparison, 2,000 of the 6,000 steps of `problem=meta_pseudo_labels`, takes three CPU
minutes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import metaopt
from metaopt import SGD, ConjugateGradient, Descent, GradientProblem, Implicit, Unroll
from metaopt.engine.protocols import Estimator, OuterOptimizer
from metaopt.estimators import OneStep, Penalty, ScoreFunction, Soba
from metaopt.nn import MLP
from metaopt.problems.examples import Ridge
from metaopt.problems.meta_pseudo_labels import MetaPseudoLabels
from metaopt.problems.meta_pseudo_labels.data import two_moons
from metaopt.problems.meta_pseudo_labels.losses import Consistency

Make = Callable[[int], GradientProblem]


def compare(
    name: str,
    make: Make,
    estimator: Callable[[], Estimator],
    optimizer: Callable[[], OuterOptimizer],
    seeds: int,
    steps: int,
    eval_every: int = 10,
) -> None:
    """Print the CPU seconds of both ways, the largest difference of a metric, and final means."""

    def run(problem: GradientProblem | Sequence[GradientProblem], **of: int) -> metaopt.Result:
        return metaopt.run(
            problem, estimator(), optimizer(), steps, progress=False, eval_every=eval_every, **of
        )

    start = time.process_time()
    alone = [run(make(seed), seed=seed) for seed in range(seeds)]
    middle = time.process_time()
    together = run([make(seed) for seed in range(seeds)], seeds=seeds)
    seconds = middle - start, time.process_time() - middle
    gaps = [
        abs(value - result.history[k][metric]) / max(1.0, abs(value))
        for k, record in enumerate(together.history)
        for metric, values in record["replicates"].items()
        for value, result in zip(values, alone, strict=True)
    ]
    print(
        f"{name:<34}{seeds:>5} seeds {steps:>5} steps: {seconds[0]:7.2f} s alone, "
        f"{seconds[1]:6.2f} s together, ratio {seconds[0] / seconds[1]:5.1f}; largest difference "
        f"of a seed {max(gaps):.0e}",
        flush=True,
    )
    for metric, values in together.replicates.items():
        both = [result.metrics[metric] for result in alone], values
        gap = mean_and_error([b - a for a, b in zip(*both, strict=True)])
        print("    {:<24} alone {:.5f} +- {:.5f}, together {:.5f} +- {:.5f}, difference "
              "{:.5f} +- {:.5f}".format(metric, *mean_and_error(both[0]),
                                        *mean_and_error(both[1]), *gap), flush=True)  # fmt: skip


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds, and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def moons(seed: int, dtype: torch.dtype = torch.float32) -> MetaPseudoLabels:
    """Return Two Moons as `problem=meta_pseudo_labels` has it."""
    data = two_moons(seed=seed)
    floating = {
        k: v.to(dtype)
        for k, v in vars(data).items()
        if isinstance(v, Tensor) and v.is_floating_point()
    }
    data = dataclasses.replace(data, **floating)
    return MetaPseudoLabels(data, MLP, MLP, SGD(lr=0.1), consistency=Consistency(), seed=seed)


def main() -> None:
    """Print all comparisons."""
    torch.set_num_threads(1)
    run_once = Ridge(), Unroll(2), Descent()
    metaopt.run(*run_once, 2, progress=False)  # imports what a first run imports

    adam = lambda: Descent("adam", lr=0.03)  # noqa: E731
    estimators = {
        "unroll": lambda: Unroll(5),
        "conjugate gradients": lambda: Implicit(ConjugateGradient()),
        "soba": Soba,
        "one step": OneStep,
        "penalty": Penalty,
    }
    for name, estimator in estimators.items():
        compare(f"ridge, {name}", lambda s: Ridge(seed=s), estimator, adam, 32, 200)
    torch.set_default_dtype(torch.float64)
    sgd = lambda: Descent("sgd", lr=0.1)  # noqa: E731
    double = lambda s: moons(s, torch.float64)  # noqa: E731
    compare("Two Moons, double precision", double, ScoreFunction, sgd, 16, 50, 50)
    torch.set_default_dtype(torch.float32)
    compare("Two Moons", moons, ScoreFunction, sgd, 16, 6000, 1000)


if __name__ == "__main__":
    main()
