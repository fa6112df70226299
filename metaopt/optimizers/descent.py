"""Gradient descent on the outer variable: SGD, Adam, AdamW, any optimizer of `torch.optim`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metaopt.engine import tree
from metaopt.engine.inner_optimizers import check_pattern
from metaopt.engine.protocols import Feedback, Tree
from metaopt.optimizers.algorithms import CLASSES, NamedAlgorithm, check_settings
from metaopt.optimizers.gradients import hypergradient, named_tensors


class Descent:
    """Step phi along minus the hypergradient, in place.

    Args:
        algorithm: sgd, adam or adamw; or what makes the optimizer from parameter groups: any
            `torch.optim` class (`functools.partial(torch.optim.RAdam, lr=1e-3)`), at the price of
            importing torch's compiler.
        scheduler: makes a learning-rate scheduler from the optimizer, stepped once per update,
            or `None`.
        clip_norm: largest norm of the hypergradient, or `None`.
        accumulate: number of hypergradients averaged into one update, >= 1.
        groups: parameter groups, each `{"match": <regular expression on the name>, ...}` with the
            settings of `algorithm` to change; the first match wins.
        frozen: regular expression on the names that stay as they are, or `None`.
        settings: of the algorithm, named as in `torch.optim`, such as lr (by default 1e-3).

    Example:
        >>> descent = Descent("adam", lr=0.1)
        >>> descent.init({"phi": torch.zeros(2)})
        >>> descent.tell(Feedback(0.0, {"phi": torch.tensor([1.0, -2.0])}))
        >>> descent.solution
        {'phi': tensor([-0.1000,  0.1000])}
    """

    def __init__(
        self,
        algorithm: str | Callable[..., Optimizer] = "sgd",
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        groups: Sequence[Mapping[str, Any]] = (),
        frozen: str | None = None,
        **settings: Any,
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"Descent needs clip_norm > 0 or null; got {clip_norm}.")
        if accumulate < 1:
            raise ValueError(f"Descent needs accumulate >= 1; got {accumulate}.")
        if any("match" not in group for group in groups):
            raise ValueError(f"each group of Descent needs `match`; got {list(groups)}.")
        for pattern in (frozen or "", *(group["match"] for group in groups)):
            check_pattern(pattern, "Descent")
        if isinstance(algorithm, str):
            check_settings(algorithm, settings)
        self.algorithm, self.scheduler, self.settings = algorithm, scheduler, settings
        self.clip_norm, self.accumulate = clip_norm, accumulate
        self.groups, self.frozen = groups, frozen
        self._outer: Tree = {}
        self._trained: Tree = {}
        self._steps = 0

    def init(self, outer: Any) -> None:
        """Copy phi and build the optimizer on it.

        Raises:
            TypeError: phi is not a dict of floating-point tensors, or the algorithm or scheduler
                needs more than a gradient a step.
            ValueError: `frozen` leaves nothing to train.
        """
        self._outer = tree.clone(named_tensors(outer, "Descent"))
        names = [n for n in outer if not (self.frozen and re.search(self.frozen, n))]
        if not names:
            raise ValueError(
                f"Descent has nothing to train: frozen={self.frozen!r} matches all names of "
                f"{list(outer)}."
            )
        self._trained = {n: self._outer[n] for n in names}
        grouped = []
        for group in self.groups:
            hit = [n for n in names if re.search(group["match"], n)]
            names = [n for n in names if n not in set(hit)]
            settings = {k: v for k, v in group.items() if k != "match"}
            grouped.append({"params": [self._outer[n] for n in hit], **settings})
        grouped.append({"params": [self._outer[n] for n in names]})
        self._optimizer = self._make([g for g in grouped if g["params"]])
        self._schedule = None
        if self.scheduler is not None and isinstance(self._optimizer, Optimizer):
            self._schedule = self.scheduler(self._optimizer)
        if isinstance(self._optimizer, torch.optim.LBFGS):
            raise TypeError("Descent steps once per hypergradient; LBFGS evaluates its own loss.")
        if isinstance(self._schedule, ReduceLROnPlateau):
            raise TypeError(
                "Descent steps its scheduler without a metric; ReduceLROnPlateau needs one. Use "
                "another torch scheduler."
            )

    def _make(self, groups: list[dict[str, Any]]) -> Optimizer | NamedAlgorithm:
        if not isinstance(self.algorithm, str):
            return self.algorithm(groups, **self.settings)
        if self.scheduler is None:
            return NamedAlgorithm(self.algorithm, groups, self.settings)
        # A scheduler of torch takes nothing but a torch optimizer.
        make: Callable[..., Optimizer] = getattr(torch.optim, CLASSES[self.algorithm])
        return make(groups, **self.settings)

    def ask(self, key: int) -> Tree:
        """Return phi. It shares memory with the optimizer: copy what must outlive `tell`."""
        return self._outer

    @torch.no_grad()
    def tell(self, feedback: Feedback) -> None:
        """Accumulate the hypergradient and, every `accumulate`-th time, take a step.

        Raises:
            TypeError: the feedback has no gradient.
        """
        grad = hypergradient(feedback, "Descent")
        for name, param in self._trained.items():
            share = grad[name] / self.accumulate
            param.grad = share if param.grad is None else param.grad.add_(share)
        self._steps += 1
        if self._steps % self.accumulate:
            return
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self._trained.values()), self.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._schedule is not None:
            self._schedule.step()

    @property
    def solution(self) -> Tree:
        """The current phi."""
        return self._outer

    def state_dict(self) -> dict[str, Any]:
        """Return phi, the accumulated gradients, and the state of optimizer and scheduler."""
        return {
            "outer": self._outer,
            "grad": {k: v.grad for k, v in self._trained.items() if v.grad is not None},
            "steps": self._steps,
            "algorithm": self._optimizer.state_dict(),
            "scheduler": None if self._schedule is None else self._schedule.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, in place."""
        for name, param in self._outer.items():
            param.copy_(state["outer"][name])
            param.grad = state["grad"][name].clone() if name in state["grad"] else None
        self._steps = state["steps"]
        self._optimizer.load_state_dict(state["algorithm"])
        if self._schedule is not None:
            self._schedule.load_state_dict(state["scheduler"])
