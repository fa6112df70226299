"""What each preference pair counts, learned from a few pairs whose labels are right."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from metaopt.engine.inner import GradientState
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold
from metaopt.problems.domain_reweighting import DomainReweighting
from metaopt.problems.domain_reweighting.batches import Rows
from metaopt.problems.domain_reweighting.phases import model, untrained
from metaopt.problems.domain_reweighting.weights import Link, WeightTable
from metaopt.problems.reward_model.feature_task import FeaturePreferences
from metaopt.problems.reward_model.steps import due

STEPS = "observed.steps"
"""Name among the buffers of the number of inner steps taken."""


class PreferenceReweighting(DomainReweighting):
    """`DomainReweighting` with a weight for every pair of every run, (R, n).

    g(phi, theta) = sum_r mean_b w_rb(phi) l_rb(theta_r), on pairs in passes as `MetaRewardModel`
    has them; F(phi, theta) = sum_r mean_b of Bradley and Terry's loss on the trusted pairs. At the
    end the reward models are trained anew with the weights as they are then, and judged. They start
    where `MetaRewardModel` starts under the same seed and see the same batches: with weights 1 they
    become its vanilla models.

    Args:
        task: the pairs; its labels are what the weights are of.
        inner_optimizer: how the reward models are stepped.
        link: see `WeightTable`.
        bound: largest weight of sigmoid and clamp, > 1.
        batch: pairs in a batch.
        meta_batch: trusted pairs in a batch, with replacement.
        retrain: whether reward models are trained anew at the end; else those that the weights
            were learned on are kept.
        steps: how long that takes, >= 1.
        seed: of the order of the pairs.

    References: Ren et al., Learning to reweight examples, ICML 2018; Cao et al., DreamPRM-1.5,
    2025 (a table of weights by row).
    """

    def __init__(
        self,
        task: FeaturePreferences,
        inner_optimizer: InnerOptimizer,
        link: Link = "sigmoid",
        bound: float = 2.0,
        batch: int = 64,
        meta_batch: int = 64,
        retrain: bool = True,
        steps: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(
            task, inner_optimizer, WeightTable("row", link, bound), sampling="rows", batch=batch,
            meta_batch=meta_batch, seed=seed,
        )  # fmt: skip
        if steps < 1:
            raise ValueError(f"PreferenceReweighting needs steps >= 1; got {steps}.")
        self.preferences, self.anew, self.steps = task, retrain, steps

    def init_outer(self, generator: Generator) -> Tree:
        """Return tables of weights 1, {"weights": (R M, n)}."""
        table = super().init_outer(generator)["weights"]
        models = self.preferences.data.runs * self.preferences.members
        return {"weights": table.expand(models, -1).clone()}

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return the buffers with the number of inner steps taken."""
        return super().init_buffers(outer, params) | {STEPS: torch.zeros((), dtype=torch.long)}

    def carry(self, outer: Tree, params: Tree, buffers: Tree, step: int) -> Tree:
        """Count the step."""
        return buffers | {STEPS: torch.tensor(step)}

    def decide(self, outer: Tree, inner: Tree, batch: Rows, generator: Generator) -> Rows:
        """Return the pairs that are due instead of drawn ones."""
        rows = self._due(int(inner[STEPS]))
        return super().decide(outer, inner, batch._replace(rows=rows), generator)

    def _due(self, step: int) -> Tensor:
        rows = self.preferences.rows
        return due(rows, min(self.batch, rows), step, self.seed)

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return the gradients of labels, of members but the first, and of training anew."""
        anew = self.steps if self.anew else 0
        trained = {"gradients": spent.get("gradients", 0) + anew}
        return {"gradients": anew + self.preferences.overhead(trained)["gradients"]}

    def finish(self, outer: Tree, inner: GradientState, key: int) -> GradientState:
        """Return reward models trained with the final weights, judged by the task."""
        if self.anew:
            key = fold(key, "retrain")
            state = untrained(self, self.task, fold(self.seed, "outer"))
            with torch.enable_grad():
                for k in range(self.steps):
                    rows = Rows(self._due(k))
                    state = self.advance(outer, state._replace(buffers={}), fold(key, k), rows)
            inner = state._replace(buffers=inner.buffers)
        found = self.preferences.conclude(model(inner.params | inner.buffers), key)
        return inner._replace(buffers=inner.buffers | {f"buffer.{k}": v for k, v in found.items()})
