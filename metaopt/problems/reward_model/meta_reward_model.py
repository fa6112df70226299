"""Reward-model meta-learning: a step that spreads unlabelled rewards before each labelled one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.inner import GradientProblem, GradientState
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import fold
from metaopt.problems.reward_model.report import TaskReport
from metaopt.problems.reward_model.steps import difference, direction, due
from metaopt.problems.reward_model.task import PreferenceTask

Variant = Literal["restore", "no_restore", "joint", "vanilla"]
Ascent = Literal["difference", "random"]
Deploy = Literal["theta", "theta_prime"]


STEP = "outer_step"
"""Name among the buffers of the number of outer steps taken before."""


class Drawn(NamedTuple):
    """A batch.

    Args:
        prompts: indices of prompts with unlabelled responses, (m,), or `None`.
        toward: a random direction, or `None`.
    """

    prompts: Tensor | None = None
    toward: Tree | None = None


class MetaRewardModel(GradientProblem):
    """Reward models phi, and the models theta that one step on unlabelled responses makes of them.

    g(theta) = -sign sum_i J_i(theta_i),   J the `difference` of rewards of k responses to a prompt;
    F(theta) = sum_i L_i(theta_i),         L Bradley and Terry's loss on labelled pairs;

    summed over G models side by side (seeds, members of ensembles), so that each is trained as if
    it were alone. Variants, each with phi <- phi - Adam(gradient) as the outer step:

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
        inner_optimizer: the step: SGD (eta times the gradient), `Unit` (of one length), or Adam,
            whose first step is eta times the signs.
        variant: restore, no_restore, joint, vanilla.
        sign: 1 to ascend J as printed, -1 to descend it.
        ascent: difference; or random, a direction drawn anew in each step instead of dJ, of length
            1: a control, with `Unit`.
        weight: of J in the variant joint, >= 0.
        deploy: which parameters are evaluated and kept: theta (phi, the paper's), or theta_prime,
            those one inner step further.
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
        ascent: Ascent = "difference",
        weight: float = 0.1,
        deploy: Deploy = "theta",
        batch: int = 64,
        prompts: int = 16,
        seed: int = 0,
    ) -> None:
        for name, value, legal in (
            ("variant", variant, get_args(Variant)),
            ("sign", sign, (1, -1)),
            ("ascent", ascent, get_args(Ascent)),
            ("deploy", deploy, get_args(Deploy)),
        ):
            if value not in legal:
                allowed = ", ".join(map(str, legal))
                raise ValueError(f"{name} must be one of {allowed}; got {value!r}.")
        if min(batch, prompts) < 1 or not weight >= 0:
            raise ValueError(
                f"MetaRewardModel needs batch >= 1, prompts >= 1 and weight >= 0; got {batch}, "
                f"{prompts} and {weight}."
            )
        if deploy == "theta_prime" and variant != "restore":
            raise ValueError(
                f"deploy=theta_prime is one inner step beyond phi, which variant={variant} does "
                f"not take; use variant=restore or deploy=theta."
            )
        self.task, self.inner_optimizer = task, inner_optimizer
        self.variant, self.sign, self.ascent = variant, sign, ascent
        self.weight, self.deploy, self.seed = weight, deploy, seed
        self.batch, self.prompts = min(batch, task.rows), min(prompts, task.prompts)
        self.warm_start = variant == "no_restore"
        self.report = TaskReport(self)

    def init_outer(self, generator: Generator) -> Tree:
        """Return the parameters of all models."""
        return self.task.init(generator)[0]

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return a copy of phi; zeros for no_restore, where theta is what the steps add up to."""
        if self.variant == "no_restore":
            return tree.zeros_like(outer)
        return {k: v.clone() for k, v in outer.items()}

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return what the task's models hold untrained."""
        return tree.clone(self._start[1]) | {STEP: torch.zeros((), dtype=torch.long)}

    def renew_buffers(self, buffers: Tree, last: Tree) -> Tree:
        """Return the buffers with the number of outer steps so far."""
        return buffers | {STEP: last[STEP] + 1}

    def observe(self, outer: Tree, inner: GradientState, feedback: Feedback) -> GradientState:
        """Count the outer step, where the run goes on; a new fork is counted as it is made."""
        if not self.warm_start:
            return inner
        return inner._replace(buffers=inner.buffers | {STEP: inner.buffers[STEP] + 1})

    def inner_batch(self, generator: Generator) -> Drawn:
        """Return prompts, or a random direction; nothing where there is no inner step."""
        if self.variant in ("joint", "vanilla"):
            return Drawn()
        if self.ascent == "random":
            return Drawn(toward=direction(self._start[0], generator))
        return Drawn(prompts=_some(self.task.prompts, self.prompts, generator))

    def outer_batch(self, generator: Generator) -> Drawn:
        """Return prompts for joint; which pairs are due is a matter of the step, not of a draw."""
        if self.variant != "joint":
            return Drawn()
        return Drawn(prompts=_some(self.task.prompts, self.prompts, generator))

    def due(self, step: int) -> Tensor:
        """Return the labelled pairs of an outer step, (B,); the same for all variants."""
        return due(self.task.rows, self.batch, step, self.seed)

    def inner_loss(self, outer: Tree, inner: Tree, batch: Drawn) -> Tensor:
        """Return -sign J, summed over models."""
        if batch.toward is not None:
            return -self.sign * tree.dot(batch.toward, inner)
        if batch.prompts is None:
            return 0.0 * next(v for k, v in inner.items() if k in outer).sum()
        rewards = self.task.responses(self._model(outer, inner), batch.prompts)
        return -self.sign * difference(rewards).mean(-1).sum()

    def outer_loss(self, outer: Tree, inner: Tree, batch: Drawn) -> Tensor:
        """Return L, summed over models.

        Raises:
            ValueError: the estimator would see no derivative.
        """
        if (
            self.variant != "no_restore"
            and _moves(outer)
            and not _moves({k: inner[k] for k in outer})
        ):
            raise ValueError(
                f"variant={self.variant} is a function of theta, which this estimator holds fixed: "
                f"nothing would be trained. Use estimator=first_order or unroll."
            )
        model = self._model(outer, inner)
        pairs = self.due(int(inner[STEP]))
        loss = self.task.row_losses(model, pairs).mean(-1).sum()
        if batch.prompts is None:
            return loss
        spread = difference(self.task.responses(model, batch.prompts)).mean(-1).sum()
        return loss - self.weight * spread

    def metrics(self, outer: Tree, inner: GradientState) -> Mapping[str, Tensor]:
        """Return the task's figures of the deployed models, one a run."""
        return self.task.metrics(self.deployed(outer, inner))

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return what the task's labels and further models cost."""
        return self.task.overhead(spent)

    def finish(self, outer: Tree, inner: GradientState, key: int) -> GradientState:
        """Return the state with what the task finds out once about the deployed models."""
        found = self.task.conclude(self.deployed(outer, inner), key)
        return inner._replace(buffers=inner.buffers | found)

    def deployed(self, outer: Tree, inner: GradientState) -> Tree:
        """Return parameters and buffers of the models that are kept."""
        if self.deploy == "theta_prime":
            key = fold(self.seed, "deploy")
            phi = self.advance(outer, self.init_inner(outer, None, key), key).params
        elif self.variant == "no_restore":
            phi = tree.add(outer, inner.params)
        else:
            phi = tree.detach(outer)
        return phi | inner.buffers

    @cached_property
    def _start(self) -> tuple[Tree, Tree]:
        """Parameters of the right shapes, and the buffers, which no draw changes."""
        return self.task.init(torch.Generator().manual_seed(0))

    def concluded(self, inner: GradientState) -> Tree:
        """Return what `finish` has added about the deployed models; empty before."""
        return {k: v for k, v in inner.buffers.items() if k not in {STEP, *self._start[1]}}

    def _model(self, outer: Tree, inner: Tree) -> Tree:
        if self.variant != "no_restore":
            return inner
        return inner | {k: v + inner[k] for k, v in outer.items()}


def _some(count: int, size: int, generator: Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[:size]


def _moves(tensors: Tree) -> bool:
    return any(v.requires_grad for v in tensors.values())
