"""Cost of learned rates against constant ones, and of a meta-batch against a loop over tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.mlp import RowWeights, least_seconds
from examples.few_shot_sinusoids import Sinusoids
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.meta_batch import MetaBatch
from metaopt.engine.protocols import Estimator, Tree
from metaopt.engine.random import generator
from metaopt.estimators import ConjugateGradient, FirstOrder, Implicit, Score, Unroll

STEPS, TASKS = 10, 16


class LearnedRates(RowWeights):
    """The same network, its learning rates made of phi: one, or one for each weight."""

    def __init__(self, kind: type[SGD] | type[Adam], rates: str, **settings: object) -> None:
        super().__init__(**settings)
        self.kind, self.rates = kind, rates
        self.inner_optimizer = self.learned if rates != "constant" else kind(lr=1e-2)
        self.names = list(self.init_params({}, generator(0)))

    def init_outer(self, generator: torch.Generator) -> Tree:
        phi = super().init_outer(generator)
        if self.rates == "one":
            phi["log_rate"] = torch.full((), 1e-2).log()
        elif self.rates == "each weight":
            params = self.init_params(phi, generator)
            phi |= {f"rate.{k}": torch.full_like(v, 1e-2) for k, v in params.items()}
        return phi

    def learned(self, outer: Tree, step: int) -> SGD | Adam:
        if self.rates == "one":
            return self.kind(lr=outer["log_rate"].exp())
        return self.kind(lr={k: outer[f"rate.{k}"] for k in self.names})


class Proximal(Sinusoids):
    """iMAML."""

    def inner_loss(self, outer: Tree, inner: Tree, batch: object) -> torch.Tensor:
        distance = sum((inner[k] - outer[k]).square().sum() for k in outer)
        return self.outer_loss(outer, inner, batch) + 0.5 * distance


def call(problem: RowWeights | Sinusoids, estimator: Estimator, loop: bool = False) -> Callable:
    phi, inner_loop = problem.init_outer(generator(0)), InnerLoop(problem)
    if loop:
        batch = inner_loop.meta_batches[TASKS] = MetaBatch(inner_loop, TASKS)
        batch.runs = False
    return lambda: estimator(inner_loop, phi, inner_loop.start(phi, None, 0), 0)


def compare(title: str, calls: dict[str, Callable], repeats: int) -> None:
    seconds = least_seconds(calls, repeats)
    print(title)
    first = next(iter(seconds.values()))
    for name, duration in seconds.items():
        print(f"  {name:<28}{1e3 * duration:9.2f} ms {duration / first:6.2f}")


def main() -> None:
    torch.set_num_threads(1)
    small = {"widths": (8, 16, 4), "batch": 16}
    for size, settings, repeats in (("212", small, 15), ("1.3 M", {}, 3)):
        for kind in (SGD, Adam):
            for estimator in (Unroll(STEPS), Score(STEPS)):
                calls = {
                    rates: call(LearnedRates(kind, rates, **settings), estimator)
                    for rates in ("constant", "one", "each weight")
                }
                name = f"{type(estimator).__name__}({STEPS}), {kind.__name__}, {size} parameters"
                compare(name, calls, repeats)
    solve = ConjugateGradient(5, tolerance=0.0)
    for name, problem, estimator in (
        ("Unroll(5)", Sinusoids(), Unroll(5, tasks=TASKS)),
        ("FirstOrder(5)", Sinusoids(), FirstOrder(5, tasks=TASKS)),
        ("Implicit(20)", Proximal(), Implicit(solve, 20, any_start=True, tasks=TASKS)),
    ):
        calls = {way: call(problem, estimator, way == "loop") for way in ("loop", "together")}
        compare(f"{name}, {TASKS} tasks of 1,760 parameters", calls, 5)


if __name__ == "__main__":
    main()
