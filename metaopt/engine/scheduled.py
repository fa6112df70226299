"""What inner optimizers share: rates, a schedule, clipping and parameter groups."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property, partial
from typing import Any

import torch

from metaopt.engine import tree
from metaopt.engine.elementwise import InPlace, Lists, OneByOne, safe_sqrt
from metaopt.engine.hyperparameters import (
    Hyperparameter,
    Number,
    check_hyperparameters,
    check_names,
    fixed,
    is_zero,
    learned,
    number_of,
    plus,
    scalar,
)
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.engine.schedules import Schedule

State = dict[str, Tree]
"""An optimizer's moments: one dict of tensors each."""

Moments = dict[str, Lists]
"""The same of one group: one list of tensors each."""

Stepped = Callable[[Lists, Lists, Moments, Number, Number, int], tuple[Lists, Moments]]
"""Steps (theta, grads, moments) of a group, given its rate, its decay and the steps before."""


@dataclass(frozen=True, kw_only=True)
class Scheduled(ABC):
    """What all inner optimizers share: rate, schedule, clipping and parameter groups.

    Args:
        lr: learning rate, > 0 (0 freezes the inner level); a dict has one for each parameter.
        weight_decay: coefficient of the decay, >= 0; a dict has one for each parameter.
        schedule: factor on the learning rate by step, or `None` for a constant rate.
        clip_norm: largest Euclidean norm of the whole gradient, or `None`
            (as `torch.nn.utils.clip_grad_norm_`).
        groups: parameter groups, each `{"match": <regular expression on the name>}` with its own
            `lr` and `weight_decay`; the first match wins, the rest keep the values above. One that
            sets neither keeps its parameters out of those after it. Each needs a parameter of
            its own: for several models, one expression may name the parameters of all (`head|fc`).
    """

    lr: Hyperparameter
    weight_decay: Hyperparameter = 0.0
    schedule: Schedule | None = None
    clip_norm: Number | None = None
    groups: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        check_ranges(self, "schedule or null", "groups")
        check_hyperparameters(self, "lr >= 0", "weight_decay >= 0", "clip_norm > 0 or null")
        for group in self.groups:
            rates = {k: v for k, v in group.items() if k != "match"}
            if "match" not in group or not rates.keys() <= {"lr", "weight_decay"}:
                raise ValueError(
                    f"a group of {type(self).__name__} needs `match` and may set `lr` and "
                    f"`weight_decay`; got {dict(group)}."
                )
            try:
                re.compile(group["match"])
            except re.error as error:
                raise ValueError(
                    f"{type(self).__name__} needs a regular expression on names; "
                    f"{group['match']!r} is none: {error}."
                ) from error
            if any(isinstance(rate, dict) for rate in rates.values()):
                raise TypeError(
                    f"a group of {type(self).__name__} has one number for all its parameters; got "
                    f"a dict. Give {type(self).__name__} itself the dict, or make smaller groups."
                )
            replace(self, groups=(), **rates)  # checks their ranges
        if self.groups and self.groups[-1].keys() == {"match"}:
            raise ValueError(
                f"the last group of {type(self).__name__}, {self.groups[-1]['match']!r}, sets "
                f"neither lr nor weight_decay, and so changes nothing; set one, or remove it."
            )

    def check_groups(self, params: Tree) -> None:
        """Raise a `ValueError` if a group is that of none of the parameters."""
        rest = list(params)
        for group in self.groups:
            matched = [n for n in params if re.search(group["match"], n)]
            if not set(matched) & set(rest):
                near = sorted(params, key=partial(_unlike, group["match"]))[:3]
                why = (
                    f"the first match wins, and groups before it have {', '.join(matched[:3])}"
                    if matched
                    else f"the nearest are {', '.join(near)}"
                )
                raise ValueError(
                    f"the group {group['match']!r} of {type(self).__name__} matches no parameter "
                    f"that is left for it: {why}. Correct `match`, a regular expression that is "
                    f"searched for in names, or remove the group."
                )
            rest = [n for n in rest if n not in set(matched)]

    def learning_rate(self, step: int) -> Number:
        """Return lr * schedule(step).

        Raises:
            ValueError: there is one for each parameter.
        """
        if isinstance(self.lr, dict):
            raise ValueError(
                f"lr of {type(self).__name__} is one for each parameter, where one number is "
                f"needed; set the step of the estimator itself."
            )
        return self.lr * (1.0 if self.schedule is None else self.schedule(step))

    @cached_property
    def fixed(self) -> bool:
        """Whether all hyperparameters are numbers."""
        return fixed(self)

    def update(self, params: Tree, grads: Tree, state: State, step: int) -> tuple[Tree, State]:
        """Return parameters and state after one step; new tensors, differentiable."""
        return self._updated(params, self._clipped(grads), state, step, self._differentiable)

    @torch.no_grad()
    def update_(self, params: Tree, grads: Tree, state: State, step: int) -> None:
        """Do the same step as `update` in place."""
        if self.fixed:
            ops = InPlace()
            self._updated(params, self._clipped(grads), state, step, partial(self.stepped, ops))
            return
        # In place, factors are numbers, and reading a tensor's would wait for the device.
        overwrite(params, state, *self.update(params, grads, state, step))

    def _updated(
        self, params: Tree, grads: Tree, state: State, step: int, stepped: Stepped
    ) -> tuple[Tree, State]:
        """Return parameters and state, stepped group by group."""
        groups = self._grouped(params, step)
        new: Tree = {}
        moments: State = {name: {} for name in state}
        for names, lr, decay in groups:
            lists = [[values[n] for n in names] for values in (params, grads, *state.values())]
            by_name: Moments = dict(zip(state, lists[2:], strict=True))
            theta, after = stepped(lists[0], lists[1], by_name, lr, decay, step)
            new.update(zip(names, theta, strict=True))
            for name, values in after.items():
                moments[name].update(zip(names, values, strict=True))
        if len(groups) > 1:  # in the order of the parameters, whatever that of the groups is
            new, moments = (
                _ordered(new, params),
                {k: _ordered(v, params) for k, v in moments.items()},
            )
        return new, moments

    def _differentiable(
        self, theta: Lists, grads: Lists, moments: Moments, lr: Number, decay: Number, step: int
    ) -> tuple[Lists, Moments]:
        """Return what `stepped` does, on the graph."""
        return self.stepped(OneByOne(), theta, grads, moments, lr, decay, step)

    @abstractmethod
    def stepped(
        self, ops: OneByOne, theta: Lists, grads: Lists, moments: Moments,
        lr: Number, decay: Number, step: int,
    ) -> tuple[Lists, Moments]:  # fmt: skip
        """Return parameters and moments of one group after a step along clipped gradients.

        Args:
            ops: how sums and products of lists are taken.
            theta, grads, moments: of the group's parameters.
            lr, decay: of the group.
            step: steps taken before.
        """

    def stationary_gradient(self, params: Tree, slope: Tree) -> Tree:
        """Return dg/dtheta + weight_decay * theta, from `slope` = dg/dtheta; differentiable.

        Momentum, Adam's moments and schedules do not move the point where it is zero. Cost without
        decay: none.

        Raises:
            ValueError: `slope` is clipped: with a decay, the steps then converge elsewhere.
            ValueError: phi makes another hyperparameter than the decay.
        """
        uniform = self.fixed and not isinstance(self.lr, dict) and not self.groups
        if uniform and is_zero(self.weight_decay):
            return slope
        idle = [name for name in learned(self) if name != "weight_decay"]
        if idle:
            raise ValueError(
                f"phi makes {idle[0]} of {type(self).__name__}, which does not move the stationary "
                f"point that an implicit estimator solves for: its derivative there is 0. Use "
                f"estimator=unroll, forward or one_step."
            )
        groups = self._grouped(params, 0)
        if len({is_zero(lr) for _, lr, _ in groups}) > 1:
            raise ValueError(
                "a group with lr=0 never moves, while an implicit estimator solves for all "
                "parameters. Return those weights as the problem's `frozen`, or use "
                "estimator=unroll."
            )
        decays = {n: decay for names, _, decay in groups for n in names}
        if all(map(is_zero, decays.values())):
            return slope
        if self.clip_norm is not None and (tree.norm(tree.detach(slope)) > self.clip_norm).any():
            raise ValueError(
                f"clip_norm={self.clip_norm} is active where the inner level is differentiated: "
                f"with weight_decay, clipped steps do not converge to a zero of a gradient. Raise "
                f"clip_norm, put the decay in inner_loss, or use estimator=unroll."
            )
        return {k: plus(s, params[k], decays[k]) for k, s in slope.items()}

    def _grouped(self, params: Tree, step: int) -> list[tuple[list[str], Number, Number]]:
        """Return (names, learning rate, weight decay) of every group that is not empty.

        Where a dict gives each parameter its own number, each is a group.
        """
        lr, decay, rest = self.lr, self.weight_decay, list(params)
        for name, value in (("lr", lr), ("weight_decay", decay)):
            if isinstance(value, dict):
                check_names(value, name, params, type(self).__name__)
        factor = 1.0 if self.schedule is None else self.schedule(step)
        grouped: list[tuple[list[str], Number, Number]] = []

        def add(names: list[str], lr: Hyperparameter, decay: Hyperparameter) -> None:
            each = isinstance(lr, dict) or isinstance(decay, dict)
            for part in [[n] for n in names] if each else [names] if names else []:
                first = part[0], params[part[0]]
                rate = number_of(lr, *first)
                grouped.append((part, rate * factor, number_of(decay, *first)))

        for group in self.groups:
            hit = [n for n in rest if re.search(group["match"], n)]
            rest = [n for n in rest if n not in set(hit)]
            add(hit, group.get("lr", lr), group.get("weight_decay", decay))
        add(rest, lr, decay)
        return grouped

    def _clipped(self, grads: Tree) -> Tree:
        """Return the gradients with their norm cut to `clip_norm`; differentiable."""
        if self.clip_norm is None:
            return grads
        # Not `clip_grad_norm_`, which works in place and off the graph.
        norms = torch.stack([safe_sqrt(tree.sums(g * g)) for g in grads.values()])
        most = scalar(self.clip_norm, norms)
        coefficient = (most / (safe_sqrt((norms * norms).sum(0)) + 1e-6)).clamp(max=1.0)
        return {k: g * tree.across(coefficient, g) for k, g in grads.items()}


def overwrite(params: Tree, state: State, new_params: Tree, new_state: State) -> None:
    """Give parameters and moments the values of new ones, in place."""
    for old, new in ((params, new_params), *((state[k], v) for k, v in new_state.items())):
        torch._foreach_copy_(list(old.values()), [new[k] for k in old])


def _ordered(values: Tree, params: Tree) -> Tree:
    return {name: values[name] for name in params}


def _unlike(pattern: str, name: str) -> float:
    """Return how far a name is from a pattern, from 0 to 1."""
    return 1 - SequenceMatcher(None, pattern, name).ratio()
