"""Reward-model meta-learning: a step that spreads unlabelled rewards before each labelled one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, GradientState, InnerTensors
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, epoch_batch, fold, generator
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.problems.reward_model.report import TaskReport
from metaopt.problems.reward_model.task import PreferenceTask, reward_spread

Variant = Literal["restore", "no_restore", "joint", "vanilla"]
Ascent = Literal["reward_spread", "random"]
Deploy = Literal["theta", "theta_prime"]


class PreferenceBatch(NamedTuple):
    """A batch.

    Args:
        pairs: indices of labelled pairs, (B,); none for an inner step.
        prompts: indices of prompts with unlabelled responses, (m,), or `None`.
        toward: a random direction, or `None`.
    """

    pairs: Tensor = torch.empty(0, dtype=torch.long)
    prompts: Tensor | None = None
    toward: Tree | None = None


class MetaRewardModel(GradientProblem):
    """Reward models phi, and the models theta that one step on unlabelled responses makes of them.

    g(theta) = -sign sum_i J_i(theta_i),   J the `reward_spread` of k responses to a prompt;
    F(theta) = sum_i L_i(theta_i),         L Bradley and Terry's loss on labelled pairs;

    summed over G vectorized models (seeds, members of ensembles), so that each is trained as if it
    were alone. Variants, each with phi <- phi - Adam(gradient) as the outer step:

    - restore: theta = phi + eta dJ, gradient dL/dtheta at theta (estimator first_order: MetaRM as
      printed) or with the derivative of the step, (I + eta H_J) dL/dtheta (estimator unroll). The
      step is undone before phi is updated.
    - no_restore: the step is kept. theta is then the sum of all steps so far, and the model is
      phi + theta (estimator direct).
    - joint: L - weight J in one loss, no inner step (estimator first_order).
    - vanilla: L alone (estimator first_order); restore with eta = 0 gives the same to the bit.

    Where restore stands still, dL/dtheta = 0, so the theta that the step leads to is the optimum of
    L, and the deployed phi = theta - eta dJ is on the low side of it: rewards are *less* spread.

    Args:
        task: pairs, responses and reward models.
        inner_optimizer: the step: SGD (eta times the gradient), `NormalizedSGD` (of one length), or
            Adam, whose first step is eta times the signs.
        variant: restore, no_restore, joint, vanilla.
        sign: 1 to ascend J as printed, -1 to descend it.
        ascent: reward_spread; or random, a new direction in each step instead of dJ, of length 1: a
            control, with `NormalizedSGD`.
        weight: of J in the variant joint, >= 0.
        deploy: which parameters are evaluated and delivered: theta (phi, the paper's), or
            theta_prime, those one inner step further.
        batch: labelled pairs in a batch, >= 1; all of them where there are fewer.
        prompts: prompts in a batch of responses, >= 1; likewise.
        seed: of the order of the pairs, and of the responses in the step to theta_prime.

    Raises:
        ValueError: a choice or a number that is not legal.

    References: Dou et al., MetaRM, arXiv 2405.00438, 2024 (AAAI 2025); Wang et al., Secrets of
    RLHF Part II, arXiv 2401.06080, 2024; Finn et al., MAML, ICML 2017 (first order).
    """

    def __init__(
        self,
        task: PreferenceTask,
        inner_optimizer: InnerOptimizer,
        variant: Variant = "restore",
        sign: int = 1,
        ascent: Ascent = "reward_spread",
        weight: float = 0.1,
        deploy: Deploy = "theta",
        batch: int = 64,
        prompts: int = 16,
        seed: int = 0,
    ) -> None:
        self.task, self.inner_optimizer = task, inner_optimizer
        self.variant, self.sign, self.ascent = variant, sign, ascent
        self.weight, self.deploy, self.seed = weight, deploy, seed
        self.batch, self.prompts = min(batch, task.rows), min(prompts, task.prompts)
        check_choices(self, variant=get_args(Variant), sign=(1, -1))
        check_choices(self, ascent=get_args(Ascent), deploy=get_args(Deploy))
        check_ranges(self, "batch >= 1", "prompts >= 1", "weight >= 0")
        if deploy == "theta_prime" and variant != "restore":
            raise ValueError(
                f"deploy=theta_prime is one inner step beyond phi, which variant={variant} does "
                f"not take; use variant=restore or deploy=theta."
            )
        self.warm_start, self.resplit = variant == "no_restore", task.resplit
        self.frozen = task.frozen
        self.report = TaskReport(self)

    def init_outer(self, generator: Generator) -> Tree:
        """Return the parameters of all models."""
        return self.task.init(generator)[0]

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return a copy of phi; zeros for no_restore, where theta is what the steps add up to."""
        if self.variant == "no_restore":
            return tree.zeros_like(outer)
        return {k: v.clone() for k, v in outer.items()}  # attached: theta depends on phi

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return what the task's models hold untrained."""
        return tree.clone(self._start[1])

    def inner_batch(self, draw: Draw) -> PreferenceBatch:
        """Return prompts, or a random direction; nothing where there is no inner step."""
        if self.variant in ("joint", "vanilla"):
            return PreferenceBatch()
        if self.ascent == "random":
            return PreferenceBatch(toward=random_direction(self._start[0], draw.generator))
        return PreferenceBatch(prompts=self._some_prompts(draw))

    def outer_batch(self, draw: Draw) -> PreferenceBatch:
        """Return the pairs of this outer step, the same for all variants, and prompts for joint."""
        # Counted by outer step and drawn from the problem's seed, so that neither the variant nor
        # the number of inner steps changes the order of the pairs.
        pairs = epoch_batch(self.task.rows, self.batch, draw.outer_step, self.seed)
        return PreferenceBatch(pairs, self._some_prompts(draw) if self.variant == "joint" else None)

    def _some_prompts(self, draw: Draw) -> Tensor:
        return torch.randperm(self.task.prompts, generator=draw.generator)[: self.prompts]

    def inner_loss(self, outer: Tree, inner: InnerTensors, batch: PreferenceBatch) -> Tensor:
        """Return -sign J, summed over models."""
        if batch.toward is not None:
            return -self.sign * tree.dot(batch.toward, inner)
        if batch.prompts is None:
            # No inner step, but a loss that depends on theta, as estimators require.
            return 0.0 * next(iter(inner.params.values())).sum()
        rewards = self.task.responses(self._model(outer, inner), batch.prompts)
        return -self.sign * reward_spread(rewards).mean(-1).sum()

    def outer_loss(self, outer: Tree, inner: InnerTensors, batch: PreferenceBatch) -> Tensor:
        """Return L, summed over models."""
        model = self._model(outer, inner)
        loss = self.task.row_losses(model, batch.pairs).mean(-1).sum()
        if batch.prompts is None:
            return loss
        spread = reward_spread(self.task.responses(model, batch.prompts)).mean(-1).sum()
        return loss - self.weight * spread

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return the task's figures of the deployed models, one per run."""
        return self.task.metrics(self.deployed(outer, inner))

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return what the task's labels and further models cost."""
        return self.task.overhead(spent)

    def finish(self, outer: Tree, inner: GradientState, loop: InnerLoop, key: int) -> GradientState:
        """Return the state with what the task measures once of the deployed models."""
        conclusion = self.task.conclude(self.deployed(outer, inner), key)
        return inner._replace(state=inner.state | conclusion)

    def deployed(self, outer: Tree, inner: GradientState) -> Tree:
        """Return parameters and buffers of the models that are delivered."""
        if self.deploy == "theta_prime":
            # A fixed key, so that measuring twice takes the same inner step.
            loop, key = InnerLoop(self), fold(self.seed, "deploy")
            fork = loop.start(outer, None, key)
            phi = loop.step_(outer, fork, Draw(key, use="retrain")).params
        elif self.variant == "no_restore":
            phi = tree.add(outer, inner.params)
        else:
            phi = tree.detach(outer)
        return phi | inner.buffers | inner.state

    @cached_property
    def replicates(self) -> int:  # type: ignore[override]
        """Number of models, each trained as it would be alone."""
        return len(next(iter(self._start[0].values())))

    @cached_property
    def _start(self) -> tuple[Tree, Tree]:
        """Parameters of the right shapes, and the buffers, which no draw changes."""
        # Computed once: a batch asks for shapes, and initial weights may be those of a backbone.
        return self.task.init(torch.Generator().manual_seed(0))

    def _model(self, outer: Tree, inner: Tree) -> Tree:
        if self.variant != "no_restore":
            return inner
        # Two optimizers step one model: phi the outer one, theta (the sum of its steps) the inner.
        return inner | {k: v + inner[k] for k, v in outer.items()}


def random_direction(params: Tree, draw: Generator) -> Tree:
    """Return a random direction for each model, uniform on the unit sphere of its parameters.

    Args:
        params: the first axis of every tensor counts models.
        draw: one number is drawn from it.
    """
    models = len(next(iter(params.values())))
    key = int(torch.randint(2**62, (), generator=draw))
    # Folded with the model's index: model i's direction does not depend on the number of models.
    each = [generator(fold(key, i)) for i in range(models)]
    drawn = {
        k: torch.stack([torch.randn(p.shape[1:], generator=g, dtype=p.dtype) for g in each])
        for k, p in params.items()
    }
    length = (
        torch.stack([d.reshape(len(d), -1).square().sum(1) for d in drawn.values()]).sum(0).sqrt()
    )
    return {
        k: (d / length.view(-1, *[1] * (d.ndim - 1))).to(params[k].device) for k, d in drawn.items()
    }
