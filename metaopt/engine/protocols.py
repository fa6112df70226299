"""The three roles and the value that joins them.

A `Problem` states two levels and never says how the outer one is optimised. An `Estimator` runs
the inner level and turns the run into `Feedback`. An `OuterOptimizer` proposes the outer variable
(`ask`) and learns from the feedback (`tell`). Inner = lower level, outer = upper level ("meta").
Everything is minimised; what should be maximised is negated once, where it is computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Generator, Tensor

from metaopt.engine.hooks import BLACK_BOX, COMMON, RECORDS, REPORT, check_names

Tree = dict[str, Tensor]
"""Named tensors, as `torch.nn.Module.state_dict` names them."""

Outer = Any
"""What the outer level steers: named tensors, a text, an action."""

Inner = Any
"""What the inner level trains: a tree of tensors, strings and numbers."""


class NonFiniteError(ArithmeticError):
    """The meta-objective or a hypergradient became NaN or infinite."""


@dataclass(frozen=True)
class Feedback:
    """What one inner run says about one outer variable.

    Args:
        value: the meta-objective F, a scalar; lower is better.
        grad: hypergradient dF/dphi with the keys, shapes and dtypes of the outer variable, or
            `None` where the level has no gradient. It points uphill: optimizers subtract it.
        observation: what an acting outer optimizer sees next (a state of its decision process).
        artifacts: transcripts, exemplars, disagreements: read by a rewriter, ignored by a gradient.
        done: the inner run has ended; the next `init_inner` starts from scratch.
        metrics: further scalars to log, named `group/name`.
        cost: what this step spent, by unit (see `metaopt.engine.budget.UNITS`).
        stop: why no further outer step is possible, or `None`: a budget of the problem's own is
            spent, a policy refused. The feedback is still good.
    """

    value: Tensor | float
    grad: Tree | None = None
    observation: Any = None
    artifacts: Any = None
    done: bool = False
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    stop: str | None = None


Snapshots = Sequence[tuple[int, dict[str, Any]]]
"""What `Report.snapshot` returned along a run, with the outer steps after which it did."""

P = TypeVar("P", bound="BilevelProblem")
R = TypeVar("R", bound="Report")
S = TypeVar("S", bound="Records")


class Report:
    """What a problem shows of a run: snapshots along it, figures and a product at its end.

    Override what is needed. `Problem.report` holds an instance of the subclass.

    Raises:
        TypeError: when a report is made that draws figures and takes no snapshots to draw.
    """

    def __new__(cls: type[R], *args: Any, **kwargs: Any) -> R:
        """Return a report whose parts fit each other and are spelt as the engine calls them."""
        kind: type = cls
        check_names(kind, REPORT)
        if cls.figures is not Report.figures and cls.snapshot is Report.snapshot:
            raise TypeError(
                f"{cls.__name__}.figures draws snapshots, and {cls.__name__} takes none; define "
                f"snapshot(self, outer, inner)."
            )
        return super().__new__(cls)

    def snapshot(self, outer: Outer, inner: Inner) -> dict[str, Any] | None:
        """Return what the figures and the product need of this moment, as tensors and primitives.

        Called after every evaluation on held-out data; `None` keeps nothing.
        """
        return None

    def figures(self, snapshots: Snapshots, folder: Path) -> list[Path]:
        """Write figures of the (outer_step, snapshot) pairs into `folder`; return their paths."""
        return []

    def deliver(self, outer: Outer, inner: Inner, snapshots: Snapshots, folder: Path) -> str:
        """Write the run's product (a model, a schedule) into `folder` and return what to print."""
        return ""


class Records:
    """What a problem keeps outside of the run: answers of language models that were paid for.

    Override what is needed. `Problem.records` holds an instance of the subclass.

    Attributes:
        authorisation: hash of the permission to ask a system of other people, by role; empty
            where all of them are simulated, `None` where no permission is needed.
    """

    authorisation: Mapping[str, str] | None = None

    def __new__(cls: type[S], *args: Any, **kwargs: Any) -> S:
        """Return records whose parts are spelt as the engine calls them."""
        kind: type = cls
        check_names(kind, RECORDS)
        return super().__new__(cls)

    def open(self, folder: Path) -> None:
        """Continue the records of the run in `folder`; called once, before the first step."""

    def spent(self) -> Mapping[str, float]:
        """Return the cost so far by unit, after the last outer step included."""
        return {}

    def close(self) -> None:
        """Close the records; called when the run ends, whatever ends it."""


class BilevelProblem(ABC):
    """Two levels: what the inner one trains, what the outer one steers, how good that was.

    The part that a black box (`Problem`) and one with two differentiable losses
    (`GradientProblem`) have in common. All names that the engine looks for are listed in
    `metaopt.engine.hooks`. A public method whose name is a near miss of one (`outer_los`) is an
    error; any other name is the problem's own.

    Attributes:
        report: what is drawn and delivered, or `None`.
        records: what is kept outside of the run, or `None`.
        replicates: number R of independent replicates that a vectorized problem trains at once.
            Its losses are sums over them, so that each trains as it would alone; the log has the
            means.
        resplit: test examples for each training example where a seed is a random split of one data
            set, >= 0, which widens the intervals of a report; 0 where each seed draws its own data
            or all of them share a test set.
        metric_names: what `metrics` may return along a run, where that is less at its beginning or
            may have to be paid for; `None` where calling it once tells.

    Raises:
        ValueError: when one is made whose class has a misspelt hook.
    """

    report: Report | None = None
    records: Records | None = None
    replicates: int = 1
    resplit: float = 0.0
    metric_names: Collection[str] | None = None
    hooks: ClassVar[frozenset[str]] = COMMON

    def __new__(cls: type[P], *args: Any, **kwargs: Any) -> P:
        """Check the names first: of a misspelt hook, Python would only say that it is missing.

        The arguments are kept for the record of a run, since not all of them become attributes.
        """
        check_names(cls, cls.hooks)
        problem = super().__new__(cls)
        # Not by setattr, which a problem that is a module has not prepared yet.
        vars(problem)["_constructor_arguments"] = (args, kwargs)
        return problem

    @abstractmethod
    def init_outer(self, generator: Generator) -> Outer:
        """Return the first outer variable."""

    # With a default.

    def metrics(self, outer: Outer, inner: Inner) -> Mapping[str, float | Tensor]:
        """Return figures on data that neither level has used, for the log and the result.

        A vectorized problem of R replicates, which differ in their seeds, returns (R,) tensors:
        the log has their mean, the result every value, and a report counts them as seeds.
        """
        return {}

    def observe(self, outer: Outer, inner: Inner, feedback: Feedback) -> Inner:
        """Return the inner state with statistics of `feedback` added, such as the hypergradient's.

        Called after every inner run, before the optimizer is told: `outer` is what the feedback is
        about, and `inner`, which may be changed in place, is the state that the run has left.
        """
        return inner

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return what the run has cost in addition to `spent`, the outer steps' sum, by unit.

        Called once, after `finish`; the engine adds it to the ledger.
        """
        return {}


class Problem(BilevelProblem):
    """Two levels whose inner one is a black box that steps and evaluates itself.

    States are trees (dicts, lists, named tuples) of tensors and primitives, so that a checkpoint
    holds them. `key` is an integer from `metaopt.engine.random.fold`: all randomness is a function
    of it.
    """

    hooks = COMMON | BLACK_BOX

    @abstractmethod
    def init_inner(self, outer: Outer, inner: Inner | None, key: int) -> Inner:
        """Return where the next inner run starts: `inner` (warm), a fork of `outer`, or new.

        `inner` is what the last run left, or `None` at the start and after `Feedback.done`.
        """

    @abstractmethod
    def inner_step(self, outer: Outer, inner: Inner, key: int) -> Inner:
        """Return the inner state one step on; the argument is left as it was."""

    @abstractmethod
    def evaluate(self, outer: Outer, inner: Inner, key: int) -> Feedback:
        """Return the meta-objective of `inner` under `outer`, without a gradient."""

    # With a default.

    def finish(self, outer: Outer, inner: Inner, key: int) -> Inner:
        """Return the inner state to report and to keep, after a last phase such as fine-tuning.

        Called once, after the last outer step.
        """
        return inner


@runtime_checkable
class Estimator(Protocol):
    """Runs the inner level from `inner` and turns the run into `Feedback`.

    `loop` is a `metaopt.engine.inner_loop.InnerLoop`, or its like for a black box. An estimator
    whose feedback has no gradient may say so by an attribute `gives_gradient = False`: an optimizer
    that needs one is then refused before the run. `takes_members = True` says that it runs all
    members of a population (`metaopt.engine.population.Members`). One with a step size of its own
    may have a method `divergence(feedback)` that returns a clause for the error where its feedback
    is not finite.
    """

    def check(self, loop: Any) -> None:
        """Raise an error that says what to use instead where this estimator would be wrong.

        Called when the engine is made, before anything is written.
        """
        ...

    def __call__(self, loop: Any, outer: Any, inner: Any, key: int) -> tuple[Any, Feedback]:
        """Return the inner state after the run, and what it says about `outer`.

        `inner` may be modified in place; do not use it afterwards.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as a tree of tensors and primitives."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


@runtime_checkable
class OuterOptimizer(Protocol):
    """Proposes outer variables and learns from the feedback; `ask` and `tell` alternate.

    An optimizer may have an attribute `needs_gradient = True`, which refuses an estimator without
    one before the run, and one that tries candidates `keeps_best = True`: a candidate whose value
    is NaN then counts as the worst, and ends no run unless all are. `couples` may name a setting by
    which an entry's step depends on the others', which is refused where a problem trains several
    replicates at once. One that has an attribute `members` asks for those of a population
    (`metaopt.engine.population.Members`), and needs an estimator that takes them; its solution is
    the outer variable of one.
    """

    def init(self, outer: Any) -> None:
        """Start over from the problem's first outer variable.

        Called before everything else; what an earlier run left in the optimizer is forgotten.
        """
        ...

    def ask(self, key: int) -> Any:
        """Return the outer variable that the next inner run is for."""
        ...

    def tell(self, feedback: Feedback) -> None:
        """Learn from the feedback on the last variable asked for."""
        ...

    @property
    def solution(self) -> Any:
        """The outer variable to keep: the current one, or the best of those tried."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as a tree of tensors and primitives."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...
