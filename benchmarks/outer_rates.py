"""What a run ends at by the learning rate of its outer optimizer, Adam's and plain SGD's.

The classical problems at their shipped settings, mean over three seeds of a held-out metric. The
tables of docs/outer_rates.md are what this program prints. A run counts as diverged if a
hypergradient was not finite, or the metric ends above `LARGEST`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from hydra.utils import instantiate

import metaopt
from metaopt.cli.loading import composing
from metaopt.cli.problem_config import composed

SEEDS = (0, 1, 2)
LARGEST = 1e3

PROBLEMS = {
    "ridge, unroll": (["problem=ridge"], "eval/test_loss_solved"),
    "quadratic, implicit": (["problem=quadratic"], "eval/outer_distance"),
    "feature penalties, implicit": (["problem=hyperparameter_optimization"], "eval/test_loss"),
    "feature penalties, soba": (
        ["problem=hyperparameter_optimization", "estimator=soba", "outer_steps=500"],
        "eval/test_loss",
    ),
    "learning rate, unroll": (
        ["problem=tuned_digits", "estimator=unroll", "optimizer=adam"],
        "eval/test_loss",
    ),
    "hyper-cleaning, unroll": (["problem=hyper_cleaning"], "eval/test_accuracy"),
    "hyper-cleaning, soba": (
        ["problem=hyper_cleaning", "estimator=soba", "outer_steps=500"],
        "eval/test_accuracy",
    ),
}
"""Overrides and metric by name."""

RATES = {
    "adam": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "sgd": (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4),
}


def final(overrides: Sequence[str], metric: str, seed: int, algorithm: str, lr: float) -> float:
    """Return the metric at the end of a run, infinity of one that diverged."""
    with composing():
        config = composed([*overrides, f"seed={seed}"])
    problem, estimator = (
        instantiate(config[name], _convert_="all") for name in ("problem", "estimator")
    )
    optimizer = metaopt.Descent(algorithm, lr=lr)
    try:
        result = metaopt.run(
            problem, estimator, optimizer, config["outer_steps"], seed=seed, progress=False
        )
    except metaopt.NonFiniteError:
        return math.inf
    value = result.metrics[metric]
    return value if value < LARGEST else math.inf


def main() -> None:
    torch.set_num_threads(1)
    for algorithm, rates in RATES.items():
        print("| problem | " + " | ".join(f"{lr:g}" for lr in rates) + " |", flush=True)
        print("|---" * (len(rates) + 1) + "|")
        for name, (overrides, metric) in PROBLEMS.items():
            cells = []
            for lr in rates:
                values = [final(overrides, metric, seed, algorithm, lr) for seed in SEEDS]
                finite = [v for v in values if math.isfinite(v)]
                mean = f"{statistics.mean(finite):.3g}" if finite else ""
                diverged = f"{len(values) - len(finite)} diverged" * (len(finite) < len(values))
                cells.append(f"{mean} ({diverged})" if mean and diverged else mean or diverged)
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        print()


if __name__ == "__main__":
    main()
