"""Gradient descent on the outer variable: SGD, Adam, AdamW, any optimizer of `torch.optim`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metaopt.engine import tree
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.ranges import check_ranges
from metaopt.engine.scheduled import State

ALGORITHMS: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""Algorithms by name; every step equals that of the class of `torch.optim`, to the bit."""

ELEMENTWISE = {
    type(None), torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam,
    torch.optim.RAdam, torch.optim.Adamax, torch.optim.Adagrad, torch.optim.Adadelta,
    torch.optim.RMSprop, torch.optim.Rprop, torch.optim.ASGD,
}  # fmt: skip
"""Torch's optimizers that step each entry by itself; `None` stands for a named algorithm."""


class Descent:
    """Step phi along minus the hypergradient, in place.

    Args:
        algorithm: sgd, adam or adamw; or what makes the optimizer from parameters: any
            `torch.optim` class (`functools.partial(torch.optim.RAdam, lr=1e-3)`), at the price of
            importing torch's compiler.
        scheduler: makes a learning-rate scheduler from the optimizer, stepped once per update,
            or `None`.
        clip_norm: largest norm of the hypergradient, or `None`.
        accumulate: number of hypergradients averaged into one update, >= 1.
        consensus: phi has a leading axis of R members that start equal, each with its own
            hypergradient. Each takes the algorithm's step with its own moments (and clipping), and
            all then become their mean (Calian et al., DataRater, 2025, average the updates).
        settings: of the algorithm, named as in `torch.optim`, such as lr (by default 1e-3); those
            with a name take a `schedule` as well, a factor on lr by update, which imports nothing
            (`metaopt.engine.schedules`).

    Example:
        >>> descent = Descent("adam", lr=0.1)
        >>> descent.init({"phi": torch.zeros(2)})
        >>> descent.tell(Feedback(0.0, {"phi": torch.tensor([1.0, -2.0])}))
        >>> descent.solution
        {'phi': tensor([-0.1000,  0.1000])}
    """

    needs_gradient = True

    def __init__(
        self,
        algorithm: str | Callable[..., Optimizer] = "sgd",
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        consensus: bool = False,
        **settings: Any,
    ) -> None:
        self._named = _named(algorithm, settings) if isinstance(algorithm, str) else None
        self.algorithm, self.scheduler, self.settings = algorithm, scheduler, settings
        self.clip_norm, self.accumulate, self.consensus = clip_norm, accumulate, consensus
        check_ranges(
            self, "algorithm", "scheduler or null", "clip_norm > 0 or null", "accumulate >= 1"
        )
        if settings.get("schedule") is not None:
            if scheduler is not None:
                raise ValueError(
                    "Descent got a scheduler of torch and a schedule, each of which sets the "
                    "learning rate; drop one of them."
                )
            if self._named is None:
                raise ValueError(
                    f"Descent takes a schedule with {', '.join(ALGORITHMS)}; give an optimizer of "
                    f"torch a scheduler, such as functools.partial(LambdaLR, lr_lambda=schedule)."
                )
        self._outer: Tree = {}
        self._steps = 0

    @property
    def stacks(self) -> bool:
        """Whether several seeds can be trained together: their axis would come before members."""
        return not self.consensus

    @property
    def scheduled(self) -> bool:
        """Whether step sizes change over the run."""
        return self.scheduler is not None or self.settings.get("schedule") is not None

    @property
    def couples(self) -> str | None:
        """The setting by which an entry's step depends on the others', or `None`."""
        if self.clip_norm is not None and not self.consensus:  # else each member has its own
            return "clip_norm"
        # Before `init` there is none to look at.
        made = getattr(self, "_optimizer", None)
        return None if type(made) in ELEMENTWISE else f"algorithm {type(made).__name__}"

    def init(self, outer: Any) -> None:
        """Copy phi and build the optimizer on it.

        Raises:
            ValueError: consensus, and phi has no members that start equal.
            TypeError: phi is not a dict of floating-point tensors, or the algorithm or scheduler
                needs more than one gradient per step.
        """
        self._outer, self._steps = tree.clone(tree.named_tensors(outer, "Descent")), 0
        self._moments: State = {} if self._named is None else self._named.init(self._outer)
        self._optimizer = self._torch_optimizer()
        self._schedule = None
        if self.scheduler is not None and self._optimizer is not None:
            self._schedule = self.scheduler(self._optimizer)
        if self.consensus:
            _check_members(self._outer)
        apart = "seed" if tree.is_replicated() else "member" if self.consensus else None
        if apart is not None and type(self._optimizer) not in ELEMENTWISE:
            together = "train several seeds together" if apart == "seed" else "set consensus"
            raise TypeError(
                f"{type(self._optimizer).__name__} may step an entry of the outer variable by what "
                f"the others are, and so one {apart} by another's. To {together}, "
                f"use sgd, adam or adamw, or another optimizer of torch.optim that steps each "
                f"entry by itself."
            )
        if isinstance(self._optimizer, torch.optim.LBFGS):
            raise TypeError("Descent steps once per hypergradient; LBFGS evaluates its own loss.")
        if isinstance(self._schedule, ReduceLROnPlateau):
            raise TypeError(
                "Descent steps its scheduler without a metric; ReduceLROnPlateau needs one. Use "
                "another torch scheduler."
            )

    def _torch_optimizer(self) -> Optimizer | None:
        """Return a torch optimizer where one is needed, else `None`.

        The first one that is made imports torch's compiler (2 s). A named algorithm therefore
        calls the same kernels itself, unless a scheduler needs an optimizer to set the rates of.
        """
        make: Any = self.algorithm
        if self._named is not None:
            if self.scheduler is None:
                return None
            make = getattr(torch.optim, type(self._named).__name__)
        settings = {k: v for k, v in self.settings.items() if k != "schedule" or v is not None}
        optimizer: Optimizer = make(list(self._outer.values()), **settings)
        return optimizer

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
        for name, param in self._outer.items():
            # A copy for an optimizer of others, which may write in the gradient.
            alone = self.accumulate == 1 and self._optimizer is None
            share = grad[name] if alone else grad[name] / self.accumulate
            param.grad = share if param.grad is None else param.grad.add_(share)
        self._steps += 1
        if self._steps % self.accumulate:
            return
        if self.clip_norm is not None:
            grads = self._grads()  # as torch.nn.utils.clip_grad_norm_, for each replicate
            with tree.replicated(tree.is_replicated() or self.consensus):
                norm = tree.norm(grads)
            coefficient = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            for name, share in grads.items():  # not in place: it may be the feedback's own
                self._outer[name].grad = share * tree.across(coefficient, share)
        if self._optimizer is not None:
            self._optimizer.step()
        elif self._named is not None:
            updates = self._steps // self.accumulate - 1  # taken before this one
            self._named.update_(self._outer, self._grads(), self._moments, updates)
        for param in self._outer.values():
            param.grad = None
            if self.consensus:
                param.copy_(param.mean(0, keepdim=True).expand_as(param))
        if self._schedule is not None:
            self._schedule.step()

    def _grads(self) -> Tree:
        """Return what is accumulated since the last update."""
        return {k: v.grad for k, v in self._outer.items() if v.grad is not None}

    @property
    def solution(self) -> Tree:
        """The current phi."""
        return self._outer

    def state_dict(self) -> dict[str, Any]:
        """Return phi, the accumulated gradients, and the state of optimizer and scheduler."""
        optimizer = self._optimizer
        return {
            "outer": self._outer,
            "grad": self._grads(),
            "steps": self._steps,
            "algorithm": self._moments if optimizer is None else optimizer.state_dict(),
            "scheduler": None if self._schedule is None else self._schedule.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, in place."""
        for name, param in self._outer.items():
            param.copy_(state["outer"][name])
            param.grad = state["grad"][name].clone() if name in state["grad"] else None
        self._steps = state["steps"]
        if self._optimizer is None:
            self._moments = tree.clone(state["algorithm"])
        else:
            self._optimizer.load_state_dict(state["algorithm"])
        if self._schedule is not None:
            self._schedule.load_state_dict(state["scheduler"])


def _check_members(outer: Tree) -> None:
    """Raise a `ValueError` unless the first axis of phi counts members, which start equal.

    A table with one number for each domain or example has an axis of those, and a mean over it
    would be no consensus.
    """
    sizes = {v.shape[0] if v.ndim else 0 for v in outer.values()}
    members = len(sizes) == 1 and sizes.pop() > 1 and any(v.ndim > 1 for v in outer.values())
    if not members or not all(torch.equal(v, v[:1].expand_as(v)) for v in outer.values()):
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in outer.items())
        raise ValueError(
            f"consensus needs an outer variable whose first axis counts two or more equal members, "
            f"as of weights=rater with weights.members; got {shapes}. Set consensus=false."
        )


def _named(algorithm: str, settings: Mapping[str, Any]) -> SGD | Adam:
    """Return the algorithm of a name.

    Raises:
        ValueError: there is no such algorithm, or a setting is unknown or out of range.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"algorithm must be {', '.join(ALGORITHMS)}, or make a torch optimizer, such as "
            f"functools.partial(torch.optim.RAdam, lr=1e-3); got {algorithm!r}."
        )
    made = ALGORITHMS[algorithm]
    inner = ("clip_norm", "groups")  # clipping is `Descent`'s own
    legal = [field.name for field in dataclasses.fields(made) if field.name not in inner]
    unknown = sorted(set(settings) - set(legal))
    if unknown:
        raise ValueError(
            f"algorithm {algorithm!r} has no setting {unknown[0]!r}; it has {', '.join(legal)}."
        )
    return made(**{"lr": 1e-3, **settings})


def hypergradient(feedback: Feedback, name: str) -> Tree:
    """Return the hypergradient.

    Raises:
        TypeError: the feedback has none.
    """
    if feedback.grad is None:
        raise TypeError(
            f"{name} needs feedback with a gradient, and this estimator gives none. Use "
            "optimizer=search, random or schedule, or an estimator with a hypergradient, such as "
            "estimator=finite_difference."
        )
    return feedback.grad
