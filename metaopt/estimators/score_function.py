"""The score-function estimator: reward sampled decisions by how much their inner step helped."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.gradient_problem import Batch, GradientState, SampledProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.estimators.constants import along, tangent
from metaopt.estimators.inner_run import InnerRun, Result
from metaopt.estimators.one_step import take_step
from metaopt.estimators.trial import try_outer_step

Kind = Literal["loss_difference", "dot_product", "cosine", "per_example"]


class ScoreFunction(InnerRun):
    """dF/dphi + weight * sum_b (h_b - baseline) d/dphi [-log p_phi(y_b)], y ~ p_phi.

    The inner step is taken on the sampled y, from theta to theta'. h > 0 when it lowered F, which
    makes the same decisions more likely. With w = -(du/dgrad)^T dF/dtheta' (lr * dF/dtheta' for
    SGD) and l_b the inner loss of example b:

    - `loss_difference`: h = F(theta) - F(theta'), one number for the batch; unbiased.
    - `dot_product`: h = <w, dg/dtheta>, its first order; the form of the paper.
    - `cosine`: that product over the two norms, of dF/dtheta' and dg/dtheta: free of scale.
    - `per_example`: h_b = <w, dl_b/dtheta> / B, each example its own credit, from one forward-mode
      evaluation; the lowest variance.

    Where phi decides hyperparameters of the inner optimizer, dF/dtheta' du/dphi is added.

    Scale: all but `cosine` carry the inner learning rate.

    Args:
        feedback: one of the four above.
        baseline: decay of the moving average that is subtracted from h, in [0, 1), or `None`.
        clip: largest |h - baseline|, or `None`.
        weight: factor on the score-function term, >= 0.
        reversed: flip the sign of h. Only for replicating a published implementation that does.

    Cost: 2 gradients, one gradient of log p; `loss_difference` one more evaluation of F,
    `per_example` one forward-mode evaluation of g.

    References: Williams, Machine Learning 1992; Pham et al., Meta Pseudo Labels, CVPR 2021.

    Example:
        >>> from metaopt import SGD, Descent, ScoreFunction, run
        >>> from metaopt.nn import MLP
        >>> from metaopt.problems.meta_pseudo_labels import MetaPseudoLabels
        >>> from metaopt.problems.meta_pseudo_labels.data import two_moons
        >>> problem = MetaPseudoLabels(two_moons(), MLP, MLP, SGD(lr=0.1))
        >>> estimator = ScoreFunction(baseline=0.9)
        >>> result = run(problem, estimator, Descent("sgd", lr=0.1), 5, progress=False)
    """

    stacks = True
    differentiates_inner = False
    carries_optimizer = True
    misses_buffers_of = ("phi",)  # theta before the step, of which buffers are made, is fixed
    memory = ("average",)

    def __init__(
        self,
        feedback: Kind = "per_example",
        baseline: float | None = None,
        clip: float | None = None,
        weight: float = 1.0,
        reversed: bool = False,
    ) -> None:
        super().__init__()
        self.feedback, self.baseline, self.clip = feedback, baseline, clip
        self.weight, self.reversed = weight, reversed
        check_choices(self, feedback=get_args(Kind))
        check_ranges(self, "0 <= baseline < 1 or null", "clip > 0 or null", "weight >= 0")
        self._average: Tensor | None = None

    def check(self, loop: InnerLoop) -> None:
        """Raise an error where this estimator would be wrong; see `Estimator.check`."""
        super().check(loop)
        if not isinstance(loop.problem, SampledProblem):
            raise TypeError(
                f"ScoreFunction needs a SampledProblem (log_prob, inner_losses, feedback_loss); "
                f"{type(loop.problem).__name__} samples no decisions. Use estimator=one_step or "
                f"unroll."
            )
        if (count := loop.problem.replicates) > 1:
            raise ValueError(
                f"ScoreFunction would reward the decisions of each of the {count} replicates of "
                f"{type(loop.problem).__name__} by what all of them gain. Let the problem state "
                f"one replicate and run it with seeds={count}."
            )
        gradients = "estimator.feedback=dot_product or loss_difference, which take gradients only"
        try_outer_step(self, loop, f"Use {gradients}")

    def estimate(self, loop: InnerLoop, outer: Tree, inner: GradientState, key: int) -> Result:
        """Return the state after one step on sampled decisions, and their reward's gradient."""
        draw = loop.draw(inner, key, 0)
        batch = loop.batch(outer, inner, draw)
        after, slope, transpose = take_step(loop, outer, inner, draw, batch)
        value, v, direct = self.outer_gradients(loop, outer, after, key)
        w, through_rates = transpose(v)
        if self.feedback == "loss_difference":
            reward = _loss_difference(loop, outer, inner, after, loop.outer_draw(after, key))
        elif self.feedback == "per_example":
            reward = _per_example(loop, outer, inner, w, draw, batch)
        elif self.feedback == "cosine":
            norms = (tree.norm(v) * tree.norm(slope)).clamp_min(1e-12)
            reward = tree.dot(v, slope) / norms
        else:
            reward = tree.dot(w, slope)

        phi = tree.leaves(outer)
        # Under the masks of the inner step: log p of the decisions that it was taken on.
        with loop.masks(draw, "noise"):
            log_prob = loop.apply("log_prob", phi, inner, batch)
        advantage = tree.across(self._advantage(reward).to(log_prob), log_prob)
        score = torch.autograd.grad(
            -(advantage * log_prob).sum(), list(phi.values()), materialize_grads=True
        )
        # The sum is over the examples of all ranks, so the engine's average over ranks is undone.
        shared = distributed.world_size()
        direct = tree.add(direct, through_rates) if through_rates else direct
        grad = tree.add(direct, tree.like(phi, score), self.weight * shared)
        metrics = {
            "outer/feedback": tree.means(reward),
            "outer/feedback_size": tree.means(reward.abs()),
        }
        return self.result(after, value, grad, metrics, gradients=3, evaluations=1)

    def _advantage(self, reward: Tensor) -> Tensor:
        """Return the signed, centred and clipped reward; update the moving average."""
        # The average is updated after it was used: a baseline that contains its reward is biased.
        advantage = reward
        if self.baseline is not None:
            mean = distributed.mean({"reward": tree.means(reward)})["reward"]
            if self._average is None:
                self._average = torch.zeros_like(mean)
            advantage = reward - tree.across(self._average, reward)
            self._average = self.baseline * self._average + (1 - self.baseline) * mean
        if self.clip is not None:
            advantage = advantage.clamp(-self.clip, self.clip)
        return -advantage if self.reversed else advantage


@torch.no_grad()
def _loss_difference(
    loop: InnerLoop, outer: Tree, before: GradientState, after: GradientState, draw: Draw
) -> Tensor:
    """Return F(theta) - F(theta') on the outer batch of `draw`, with the buffers after the step.

    Those are what F(theta') is evaluated with; they do not depend on the decisions.
    """
    batch = loop.outer_batch(draw)

    def loss(params: Tree) -> Tensor:
        with loop.masks(draw, "outer noise"):
            result: Tensor = loop.apply("feedback_loss", outer, after.at(params), batch)
            return result

    difference = loss(before.params) - loss(after.params)
    return distributed.mean({"difference": difference})["difference"]


def _per_example(
    loop: InnerLoop, outer: Tree, inner: GradientState, w: Tree, draw: Draw, batch: Batch
) -> Tensor:
    """Return <w, dl_b/dtheta> / B for each example of this rank; B counts those of all ranks."""
    with along(inner.params, w) as theta, loop.masks(draw, "noise"):
        losses: Tensor = loop.apply("inner_losses", tree.detach(outer), inner.at(theta), batch)
        slopes = tangent(losses)
    if slopes is None:
        return torch.zeros_like(losses)
    return slopes / (slopes.shape[-1] * distributed.world_size())
