"""What each preference pair counts, learned from a few pairs whose labels are right."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, epoch_batch, fold
from metaopt.engine.ranges import check_ranges
from metaopt.problems.domain_reweighting import DomainReweighting
from metaopt.problems.domain_reweighting.batches import Rows
from metaopt.problems.domain_reweighting.phases import fit, untrained
from metaopt.problems.domain_reweighting.weights import Link, WeightTable
from metaopt.problems.reward_model.feature_task import FeaturePreferences


class PreferenceReweighting(DomainReweighting):
    """`DomainReweighting` with a weight for every pair of every run, (R, n).

    g(phi, theta) = sum_r mean_b w_rb(phi) l_rb(theta_r), on pairs in passes as `MetaRewardModel`
    has them; F(phi, theta) = sum_r mean_b of Bradley and Terry's loss on the trusted pairs. At the
    end the reward models are retrained from scratch with the weights as they are then, and judged.
    They start where `MetaRewardModel` starts under the same seed and see the same batches: with
    weights 1 they become its vanilla models.

    Args:
        task: the pairs; its labels are what the weights are of.
        inner_optimizer: how the reward models are stepped.
        link: see `WeightTable`.
        bound: largest weight of sigmoid and clamp, > 1.
        batch: pairs in a batch.
        meta_batch: trusted pairs in a batch, with replacement.
        retrain_steps: steps of reward models that are trained from scratch at the end, in place of
            those that the weights were learned on; 0 keeps the latter.
        seed: of the order of the pairs.

    References: Ren et al., Learning to reweight examples, ICML 2018; Cao et al., DreamPRM-1.5,
    2025 (a table of weights by row).
    """

    retrain_steps: int

    def __init__(
        self,
        task: FeaturePreferences,
        inner_optimizer: InnerOptimizer,
        link: Link = "sigmoid",
        bound: float = 2.0,
        batch: int = 64,
        meta_batch: int = 64,
        retrain_steps: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(
            task, inner_optimizer, WeightTable("row", link, bound), sampling="rows", batch=batch,
            meta_batch=meta_batch, seed=seed,
        )  # fmt: skip
        self.preferences, self.retrain_steps = task, retrain_steps
        self.link, self.bound = link, bound
        check_ranges(self, "retrain_steps >= 0")
        self.replicates = task.data.runs * task.members

    def init_outer(self, generator: Generator) -> Tree:
        """Return tables of weights 1, {"weights": (R M, n)}."""
        table = super().init_outer(generator)["weights"]
        return {"weights": table.expand(self.replicates, -1).clone()}

    def inner_batch(self, draw: Draw) -> Rows:
        """Return the pairs of this step of an epoch."""
        return self._pairs(draw.total_inner_step)

    def _pairs(self, step: int) -> Rows:
        pairs = self.preferences.rows
        return Rows(epoch_batch(pairs, min(self.batch, pairs), step, self.seed))

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return the gradients of labels, of members but the first, and of retraining."""
        trained = {"gradients": spent.get("gradients", 0) + self.retrain_steps}
        return {"gradients": self.retrain_steps + self.preferences.overhead(trained)["gradients"]}

    def finish(self, outer: Tree, inner: GradientState, loop: InnerLoop, key: int) -> GradientState:
        """Return reward models trained with the final weights, judged by the task."""
        if self.retrain_steps:
            key = fold(key, "retrain")
            new = untrained(loop, self.task, fold(self.seed, "outer"))._replace(state=inner.state)
            inner = fit(loop, new, lambda k, g: self._pairs(k), self.retrain_steps, key, outer)
        verdict = self.preferences.conclude(inner.params | inner.buffers, key)
        return inner._replace(state=inner.state | {"verdict": verdict})

    def models(self, inner: GradientState) -> dict[str, Tree]:
        """Return the tensors of the reward models, with what the task says of them at the end."""
        models = super().models(inner)
        return models | {"reweighted": models["reweighted"] | inner.state.get("verdict", {})}
