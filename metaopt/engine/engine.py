"""The loop, and nothing else: an iterator that the caller drives."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.across_ranks import all_reduce, depends_on_processes, shared_state
from metaopt.engine.budget import Ledger
from metaopt.engine.hooks import check_attributes
from metaopt.engine.inner_loop import loop_of
from metaopt.engine.population import Members, asks_for_members
from metaopt.engine.protocols import (
    BilevelProblem,
    Estimator,
    Feedback,
    NonFiniteError,
    OuterOptimizer,
    Records,
    Report,
)
from metaopt.engine.random import Keys, fold
from metaopt.engine.ranges import check_ranges
from metaopt.engine.replicates import Replicates
from metaopt.engine.seed_attributes import INSTEAD
from metaopt.engine.seeds import seeds_from


class Engine:
    """Alternates the outer optimizer and the estimator.

    The caller iterates over it, and logs, writes checkpoints or stops between two steps.

    Args:
        problem, estimator, optimizer: the three roles; see `metaopt.engine.protocols`.
        outer_steps: number T of outer steps, >= 0.
        seed: the root of all randomness; a step's draws are a function of (seed, outer_step).
        limits: largest total cost by unit (`metaopt.engine.budget.UNITS`), of each seed where there
            are several; `None`, for one unit or for all, is no limit.
        seeds: several seeds to train together, or how many from `seed` on; `None` for one run. All
            tensors then have a leading axis of replicates, and so have value, gradient and metrics
            of a feedback. `problem` may be a list, with the problem of each seed.

    Attributes:
        seeds: the seeds that are trained together, or `None`.
        outer_step: outer steps taken so far.
        inner: the state the last inner run left, or `None` before the first.
        done: whether that run has ended, so that the next one starts from scratch.
        ledger: what has been spent.

    Raises:
        NonFiniteError: from iteration, when a meta-objective or a hypergradient is not finite;
            the optimizer has then not been told, so its state is still good. Without a gradient
            +inf is legal: an infeasible candidate, and so is NaN of an optimizer that keeps the
            best of its trials. From `finish`, when all of them were NaN.

    Example:
        >>> from metaopt import Descent, Engine, Unroll
        >>> from metaopt.problems.examples import Ridge
        >>> engine = Engine(Ridge(), Unroll(inner_steps=5), Descent("adam", lr=0.1), outer_steps=30)
        >>> losses = [float(feedback.value) for step, feedback in engine]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self,
        problem: BilevelProblem | Sequence[BilevelProblem],
        estimator: Estimator,
        optimizer: OuterOptimizer,
        *,
        outer_steps: int,
        seed: int = 0,
        limits: Mapping[str, float | None] | None = None,
        seeds: int | Sequence[int] | None = None,
    ) -> None:
        self.outer_steps, self.seed = outer_steps, seed
        check_ranges(self, "outer_steps >= 0", "seed")
        self.outer_steps, self.seed = int(outer_steps), int(seed)  # of numpy, too
        self.seeds = seeds_from(self.seed, seeds)
        problems = self._problems(problem)
        self.problem: BilevelProblem = problems[0]
        _check_role("problem", self.problem)
        _check_role("estimator", estimator, Estimator)
        _check_role("optimizer", optimizer, OuterOptimizer)
        # A copy, since what an estimator keeps from step to step belongs to one run.
        self.estimator, self.optimizer = copy.copy(estimator), optimizer
        _check_pair(estimator, optimizer)
        self.loop = loop_of(self.problem)
        check_attributes(self.problem)
        _check_parts(self.problem)
        self.outer_step = 0
        with self._located("before", 0):  # the key of all that a check draws
            together = None if self.seeds is None else Replicates(problems, self.seeds)
            self.estimator.check(self.loop)
            if together is not None:
                _check_stacks(estimator, optimizer)
                together.check()
                self.loop = together
        self.inner: Any = None
        self.done = True
        self.ledger = Ledger(limits)
        self._stop: str | None = None
        self._nan_candidates = 0
        with self._replicated():
            optimizer.init(self.loop.initial_outer(fold(self._root, "outer")))
        _refuse_coupled(self.problem, optimizer)

    def __iter__(self) -> Iterator[tuple[int, Feedback]]:
        """Yield (outer_step, feedback) after every outer step until T, or until it is stopped."""
        while self.outer_step < self.outer_steps and self.stopped is None:
            key = fold(self._root, self.outer_step)
            with self._located("in", key), self._replicated():
                feedback = self._step(key)
            self.outer_step += 1
            yield self.outer_step, feedback

    def _problems(self, problem: Any) -> list[Any]:
        """Return the problem of each seed; one that is given alone is that of all of them."""
        given = list(problem) if isinstance(problem, (list, tuple)) else [problem]
        if self.seeds is None:
            if isinstance(problem, (list, tuple)):
                raise TypeError("problem is a list, one of each seed, and seeds is None.")
            return given
        if len(given) not in (1, len(self.seeds)):
            raise ValueError(f"there are {len(given)} problems and {len(self.seeds)} seeds.")
        return given if len(given) > 1 else given * len(self.seeds)

    @property
    def _root(self) -> int:
        return self.seed if self.seeds is None else Keys(self.seeds)

    def _replicated(self) -> AbstractContextManager[None]:
        return nullcontext() if self.seeds is None else tree.replicated()

    @contextmanager
    def _located(self, place: str, key: int) -> Iterator[None]:
        """Add to an error where in the run it was raised."""
        try:
            yield
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(
                    f"{place.capitalize()} outer step {self.outer_step + 1} of "
                    f"{type(self.problem).__name__}, key={key}: all that it draws is a function of "
                    f"this key."
                )
            raise

    def _step(self, key: int) -> Feedback:
        # Each purpose has its own key, so that a new draw in one part moves none of another's.
        outer = self.optimizer.ask(fold(key, "ask"))
        self.loop.outer_step = self.outer_step  # batches know where they are: see `Draw`
        # The members of a population go on from states of their own, which the estimator keeps.
        start_at = outer.of(0) if isinstance(outer, Members) else outer
        inner = self.loop.start(start_at, None if self.done else self.inner, key)
        inner, feedback = self.estimator(self.loop, outer, inner, key)
        feedback, inner = self._checked(all_reduce(feedback)), shared_state(inner)
        # Before `tell`, which may update phi in place: the feedback is about the old one.
        inner = self.loop.observe(outer, inner, feedback)
        self.optimizer.tell(feedback)
        self.ledger.charge(feedback.cost)
        self.inner, self.done, self._stop = inner, feedback.done, feedback.stop
        return feedback

    @property
    def stopped(self) -> str | None:
        """The unit whose limit is reached, or the problem's own reason to stop, or `None`."""
        return self.ledger.exhausted or self._stop

    def _checked(self, feedback: Feedback) -> Feedback:
        value: Tensor = torch.as_tensor(feedback.value).detach()
        # The loss that is differentiated is a sum over replicates, the one that is logged a mean.
        replicates = self.problem.replicates
        mean = value / replicates if replicates > 1 else value
        metrics, norm = {"outer/loss": mean, **feedback.metrics}, value
        if feedback.grad is not None:
            metrics["outer/grad_norm"] = norm = tree.norm(feedback.grad)
        if self._nan_candidates:
            metrics["outer/nan_candidates"] = self._nan_candidates
        both = value if norm is value else value + norm.to(value)
        # One number per step, for all replicates: on a GPU each waits for the device.
        if not math.isfinite(tree.total(both)) and (bad := _illegal(both, feedback)).any():
            first = int(bad.reshape(-1).int().argmax())  # of replicates, where there are some
            what, number = "outer loss", float(value.reshape(-1)[first])
            if math.isfinite(number):
                what, number = "norm of the hypergradient", float(norm.reshape(-1)[first])
            # One candidate of many that diverged is the worst of them. What it left of the inner
            # level is good for nothing, so that the next run starts from scratch.
            if math.isnan(number) and getattr(self.optimizer, "keeps_best", False):
                self._nan_candidates += 1
                worst = dataclasses.replace(feedback, value=math.inf, grad=None, done=True)
                return self._checked(worst)
            which = "" if self.seeds is None else f" of seed {self.seeds[first]}"
            cause = getattr(self.estimator, "divergence", lambda _: "")(feedback)
            raise NonFiniteError(
                f"{what}{which} is {number} at outer step {self.outer_step + 1}{cause}"
            )
        return dataclasses.replace(feedback, value=value, metrics=metrics)

    def depends_on(self, processes: int) -> bool:
        """Return whether the results depend on how many processes split the batches.

        Raises:
            PartsError: they cannot; see `metaopt.engine.across_ranks.depends_on_processes`.
        """
        with self._located("before", 0):
            outer = self.loop.initial_outer(fold(self._root, "outer"))
            return depends_on_processes(self.loop, outer, fold(self._root, 0), processes)

    def finish(self) -> None:
        """Run the problem's last phase, and charge what the loop did not.

        Call it once, after the loop.

        Raises:
            NonFiniteError: the outer loss of all candidates was NaN, so that none is the best.
        """
        if self._nan_candidates and self._nan_candidates == self.outer_step:
            raise NonFiniteError(
                f"the outer loss was NaN for all {self.outer_step} candidates of "
                f"{type(self.optimizer).__name__}, so that none of them is the best"
            )
        if self.inner is not None:
            key, solution = fold(self._root, "finish"), self.optimizer.solution
            self.inner = self.loop.finish(solution, self.inner, key)
        self.ledger.charge(self.problem.overhead(dict(self.ledger.spent)))

    def metrics(self) -> dict[str, float]:
        """Return the problem's held-out metrics, named `eval/<metric>`; empty before a step.

        They pair the optimizer's solution with the state that the last inner run left, which for
        an optimizer that keeps the best of its trials may belong to another trial. Of a metric
        with one value per replicate this is the mean.
        """
        return {name: float(value.mean()) for name, value in self.measured().items()}

    def measured(self) -> dict[str, Tensor]:
        """Return the same metrics as double-precision scalars, or (R,): one value per replicate.

        Raises:
            ValueError: the problem returned a metric of another shape.
        """
        if self.inner is None:
            return {}
        metrics = self.loop.metrics(self.optimizer.solution, self.inner)
        values = {k: torch.as_tensor(v, dtype=torch.float64).cpu() for k, v in metrics.items()}
        for name, value in values.items():
            if value.ndim > 1 or not value.numel():
                raise ValueError(
                    f"metric {name} of {type(self.problem).__name__} must be a number, or (R,) "
                    f"with one value per replicate; got the shape {tuple(value.shape)}."
                )
        return {f"eval/{name}": value for name, value in values.items()}

    def reported(self) -> tuple[Any, Any]:
        """Return the solution and the inner state that a report shows: those of the first seed."""
        solution, inner = self.optimizer.solution, self.inner
        if not isinstance(self.loop, Replicates):
            return solution, inner
        return self.loop.outer_of(solution, 0), self.loop.member(inner, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return a tree of tensors and primitives from which the run continues to the bit.

        It shares memory with the run: save or copy it before the next step.
        """
        state = {
            "outer_step": self.outer_step,
            "seed": self.seed if self.seeds is None else list(self.seeds),
            "inner": self.inner,
            "frozen": self.loop.frozen_hash,
            "done": self.done,
            "optimizer": self.optimizer.state_dict(),
            "estimator": self.estimator.state_dict(),
            "spent": dict(self.ledger.spent),
            "stop": self._stop,
            "nan_candidates": self._nan_candidates,
        }
        return dict(tree.pack(state))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        seed = self.seed if self.seeds is None else list(self.seeds)
        if state["seed"] != seed:
            raise ValueError(
                f"the checkpoint was written with seed={state['seed']}, this run has "
                f"seed={seed}; resume with the seed of the checkpoint."
            )
        if state["frozen"] != self.loop.frozen_hash:
            raise ValueError(
                f"the frozen weights of {type(self.problem).__name__} are not those that the "
                f"checkpoint was written with (hash {state['frozen']}, now "
                f"{self.loop.frozen_hash}); resume with the same pretrained weights, or start a "
                f"new run."
            )
        # A copy: the run goes on in place, and the caller's state may be another run's.
        state = tree.clone(tree.unpack(state))
        self.outer_step, self.inner = state["outer_step"], state["inner"]
        self.done = state["done"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.estimator.load_state_dict(state["estimator"])
        self.ledger.spent = dict(state["spent"])
        self._stop, self._nan_candidates = state["stop"], state["nan_candidates"]


def _illegal(value: Tensor, feedback: Feedback) -> Tensor:
    """Return where a value is NaN or infinite; without a gradient +inf is legal."""
    if feedback.grad is None:
        return torch.isnan(value) | torch.isneginf(value)
    return ~torch.isfinite(value)


def _check_pair(estimator: Estimator, optimizer: OuterOptimizer) -> None:
    """Raise a `TypeError` if an optimizer needs what an estimator does not give."""
    if getattr(optimizer, "needs_gradient", False) and not getattr(
        estimator, "gives_gradient", True
    ):
        raise TypeError(
            f"{type(optimizer).__name__} needs feedback with a gradient, and "
            f"{type(estimator).__name__} gives none. Use optimizer=search, random or "
            f"schedule, or an estimator with a hypergradient, such as "
            f"estimator=finite_difference."
        )
    if asks_for_members(optimizer) and not getattr(estimator, "takes_members", False):
        raise TypeError(
            f"{type(optimizer).__name__} asks for the outer variables of all members of a "
            f"population, and {type(estimator).__name__} runs one. Use "
            f"estimator=population_score."
        )


def _check_parts(problem: BilevelProblem) -> None:
    """Raise a `TypeError` unless a problem's report and records are what the engine calls."""
    for name, kind in (("report", Report), ("records", Records)):
        part, owner = getattr(problem, name), type(problem).__name__
        if not isinstance(part, (kind, type(None))):
            raise TypeError(
                f"{owner}.{name} must be a metaopt.{kind.__name__} or None, since the engine "
                f"calls it; got {part!r}. Rename an attribute of your own."
            )


def _refuse_coupled(problem: BilevelProblem, optimizer: OuterOptimizer) -> None:
    """Raise a `ValueError` if the outer step of a problem's replicate would depend on the others'.

    As of the inner level, see `metaopt.estimators.optimizer_check.refuse_shared_clip`.
    """
    setting = getattr(optimizer, "couples", None)
    if problem.replicates > 1 and setting is not None:
        name = type(problem).__name__
        raise ValueError(
            f"{setting} of {type(optimizer).__name__} lets an entry's outer step depend on all "
            f"others, and so those of the {problem.replicates} replicates of {name} on each other: "
            f"none would train as it does alone. Drop it, or let the problem state one replicate "
            f"and run it with seeds={problem.replicates}."
        )


def _check_stacks(*parts: object) -> None:
    """Raise a `TypeError` unless an estimator and an optimizer keep replicates apart."""
    for part in parts:
        if getattr(part, "stacks", False):
            continue
        name = type(part).__name__
        solver = getattr(part, "solve", None)
        inside = "" if solver is None else f" with {type(solver).__name__}"
        raise TypeError(f"{name}{inside} cannot train several seeds together. {INSTEAD}")


def _check_role(name: str, part: object, role: type = object) -> None:
    """Raise a `TypeError` unless a part is an object of its role: not its class, nor another's."""
    if isinstance(part, type):
        raise TypeError(
            f"{name} is the class {part.__name__}, and an object of it is needed: pass "
            f"{part.__name__}(...)."
        )
    if not isinstance(part, role):
        missing = (m for m in sorted(vars(role)) if m[0] != "_" and not hasattr(part, m))
        raise TypeError(
            f"{name} must have the methods of metaopt.{role.__name__}; {part!r} has no "
            f"{', '.join(missing)}."
        )
