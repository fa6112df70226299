"""Search over outer variables of any kind: texts, choices, tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback
from metaopt.engine.random import fold
from metaopt.engine.ranges import check_choices, check_ranges

Accept = Literal["always", "if_better", "archive"]
Rank = Literal["value", "screen"]
Keep = Literal["best", "latest"]


class Trial(NamedTuple):
    """An outer variable with what is known of it.

    Args:
        outer: the outer variable.
        value: mean of the values told for it; lower is better.
        evaluations: how many values that mean is of.
        artifacts: `Feedback.artifacts` of its last inner run.
    """

    outer: Any
    value: float
    evaluations: int = 1
    artifacts: Any = None


class Proposer(Protocol):
    """Makes a new outer variable from earlier trials: a mutation, a language model."""

    def __call__(self, parents: Sequence[Trial], key: int) -> Any:
        """Return a candidate.

        Args:
            parents: at least one trial, best first; see `accept` of `Search`.
            key: all randomness must be a function of it.
        """
        ...


class PureProposer(ABC):
    """A `Proposer` that is a function of its arguments alone, and free: no model, no request."""

    @abstractmethod
    def __call__(self, parents: Sequence[Trial], key: int) -> Any:
        """Return a candidate."""


Screen = Callable[[Any, Sequence[Trial]], float]
"""Predicts a candidate's value from past trials alone; lower is better, `math.inf` rejects it."""


class Search:
    """Propose, screen on past evidence, pay for an inner run, keep an archive of the best.

    The first outer variable asked for is the problem's own. Without a proposer it stays the only
    one: the baseline of a fixed outer variable.

    Args:
        proposer: makes candidates, or `None`.
        screen: predicts a candidate's value from the archive, or `None`. It spares inner runs:
            it sees the artifacts of past trials and must not start one.
        accept: what the proposer builds on. "always": the latest trial; "if_better": the best
            one; "archive": all of the archive.
        archive_size: number of the best trials in the archive, >= 1, or `None` for all.
        repeats: inner runs averaged into one trial, >= 1, for noisy values. An outer variable
            that comes up again while it is in the archive adds to its average in any case.
        proposals: candidates drawn at a time, of which the best by `screen` is run, >= 1.
        redraws: further draws when the screen rejects all, >= 0. After the last of them the
            first parent is run again, which sharpens its average.
        rank: order of the archive: "value", the averages told, or "screen", what the screen
            predicts from today's evidence, for values told under conditions that have changed.
        keep: the solution: "best", the first of the archive, or "latest", the last trial, for an
            inner level that goes on under each candidate, so that values of different trials are
            not to be compared.

    Raises:
        ValueError: an argument outside its range, or one that needs a screen without one.

    References: Yang et al., Large Language Models as Optimizers, ICLR 2024 (an archive shown to a
    proposer); Rechenberg, Evolutionsstrategie, 1973 (a mutation with "if_better").

    Example:
        >>> from metaopt.optimizers import Mutation
        >>> search = Search(Mutation(scale=0.5))
        >>> search.init(3.0)
        >>> for key in range(50):
        ...     search.tell(Feedback(search.ask(key) ** 2))
        >>> abs(search.solution) < 0.5
        True
    """

    keeps_best = True  # so that a candidate that diverged ends no search

    def __init__(
        self,
        proposer: Proposer | None = None,
        screen: Screen | None = None,
        accept: Accept = "if_better",
        archive_size: int | None = 16,
        repeats: int = 1,
        proposals: int = 1,
        redraws: int = 10,
        rank: Rank = "value",
        keep: Keep = "best",
    ) -> None:
        if screen is None and (proposals > 1 or rank == "screen"):
            raise ValueError("Search needs a screen for proposals > 1 and for rank=screen.")
        self.proposer, self.screen, self.accept, self.rank = proposer, screen, accept, rank
        self.keep, self.archive_size, self.repeats = keep, archive_size, repeats
        self.proposals, self.redraws = proposals, redraws
        check_choices(self, accept=get_args(Accept), rank=get_args(Rank), keep=get_args(Keep))
        check_ranges(
            self, "archive_size >= 1 or null", "repeats >= 1", "proposals >= 1", "redraws >= 0"
        )
        self._initial: Any = None
        self._archive: list[Trial] = []
        self._latest: Trial | None = None
        self._pending: Trial | None = None

    def init(self, outer: Any) -> None:
        """Keep the first outer variable, which is the first to be run.

        A `PureProposer` is called once, so that one that cannot change it fails before the run.
        """
        self._initial = tree.clone(outer)
        self._archive, self._latest, self._pending = [], None, None
        if isinstance(self.proposer, PureProposer):
            self.proposer([Trial(self._initial, math.inf)], 0)

    def ask(self, key: int) -> Any:
        """Return the candidate to run next; the same one until its repeats are told."""
        if self._pending is None:
            self._pending = Trial(self._propose(key), 0.0, 0)
        return self._pending.outer

    def tell(self, feedback: Feedback) -> None:
        """Add the value to the candidate's average and, after the last repeat, file the trial.

        Raises:
            RuntimeError: nothing has been asked for since the last trial was filed.
        """
        if self._pending is None:
            raise RuntimeError("Search.tell needs an ask first.")
        artifacts = tree.clone(feedback.artifacts)
        run = Trial(self._pending.outer, float(feedback.value), 1, artifacts)
        self._pending = merge(self._pending, run)
        if self._pending.evaluations == self.repeats:
            self._file(self._pending)
            self._pending = None

    @property
    def solution(self) -> Any:
        """The trial to keep; the problem's own outer variable before the first trial."""
        if self.keep == "latest" and self._latest is not None:
            return self._latest.outer
        return self._archive[0].outer if self._archive else self._initial

    @property
    def trials(self) -> list[Trial]:
        """The archive, best first, and the latest trial at its end where it is not in it."""
        if self._latest is None or any(same(self._latest.outer, t.outer) for t in self._archive):
            return list(self._archive)
        return [*self._archive, self._latest]

    def state_dict(self) -> dict[str, Any]:
        """Return the archive, the latest trial and the one under way."""
        return {
            "archive": [t._asdict() for t in self._archive],
            "latest": self._latest and self._latest._asdict(),
            "pending": self._pending and self._pending._asdict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._archive = [Trial(**t) for t in state["archive"]]
        self._latest = state["latest"] and Trial(**state["latest"])
        self._pending = state["pending"] and Trial(**state["pending"])

    def _propose(self, key: int) -> Any:
        if self.proposer is None or self._latest is None:
            return self._initial
        best = self._archive[:1] if self.accept == "if_better" else self._archive
        parents = [self._latest] if self.accept == "always" else best
        if self.screen is None:
            return self.proposer(parents, fold(key, 0, 0))
        for attempt in range(self.redraws + 1):
            keys = [fold(key, attempt, i) for i in range(self.proposals)]
            drawn = [self.proposer(parents, k) for k in keys]
            scores = [self.screen(candidate, self.trials) for candidate in drawn]
            first = min(range(len(drawn)), key=scores.__getitem__)
            if scores[first] < math.inf:
                return drawn[first]
        return parents[0].outer

    def _file(self, trial: Trial) -> None:
        """Put a trial into the archive, merged with the earlier one of the same outer variable."""
        known = next((t for t in self._archive if same(t.outer, trial.outer)), None)
        self._latest = trial if known is None else merge(known, trial)
        self._archive = [*(t for t in self._archive if t is not known), self._latest]
        self._archive = sorted(self._archive, key=self._score)[: self.archive_size]

    def _score(self, trial: Trial) -> float:
        if self.rank == "screen" and self.screen is not None:
            return self.screen(trial.outer, self.trials)
        return trial.value


def merge(earlier: Trial, later: Trial) -> Trial:
    """Return the trial of both: the mean of all values, the artifacts of the later one."""
    count = earlier.evaluations + later.evaluations
    total = earlier.value * earlier.evaluations + later.value * later.evaluations
    return Trial(earlier.outer, total / count, count, later.artifacts)


def reject_known(candidate: Any, trials: Sequence[Trial]) -> float:
    """Screen that rejects what the archive holds already and has no opinion on the rest."""
    return math.inf if any(same(candidate, t.outer) for t in trials) else 0.0


def same(a: Any, b: Any) -> bool:
    """Return whether two outer variables are equal, tensors entry by entry."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return (
            isinstance(b, (list, tuple)) and len(a) == len(b)
            and all(same(x, y) for x, y in zip(a, b, strict=True))
        )  # fmt: skip
    return bool(a == b)
