"""What the inner level trains: a policy under the reward of a rubric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

from metaopt.llm import LM
from metaopt.problems.meta_policy_optimization.item_scores import Scale, factor, read_weights

State = dict[str, Any]
"""What training changes, as a tree of tensors and primitives: a checkpoint holds it."""

Pairs = Sequence[tuple[int, str]]
"""(index of a query, response) pairs."""


@dataclass(frozen=True)
class Reward:
    """The reward of a rubric: the sum of its items' points, scaled.

    Args:
        rubric: its text.
        scale: see `item_scores.factor`.
        judge: asks the judge for the points of responses; `None` in the place of a reply that
            states none, which must enter no update.
    """

    rubric: str
    scale: Scale
    judge: Callable[[str, Pairs], list[float | None]]

    @cached_property
    def factor(self) -> float:
        """What points are multiplied with."""
        return factor(read_weights(self.rubric), self.scale)

    def __call__(self, pairs: Pairs) -> list[float | None]:
        """Return the reward of responses by the judge."""
        points = self.judge(self.rubric, pairs)
        return [None if each is None else self.factor * each for each in points]

    def share(self, rewards: Sequence[float | None]) -> float | None:
        """Return the mean share of the rubric's points, in [-1, 1], of the rewards that there are.

        `None` where there is none.
        """
        scored = [each for each in rewards if each is not None]
        if not scored:
            return None
        most = self.factor * sum(map(abs, read_weights(self.rubric).values()))
        return sum(scored) / len(scored) / most


class Examination(NamedTuple):
    """Responses that measure a rubric, the same for every rubric of a world.

    Args:
        queries: a label of each response's query, none of which the policy is trained on.
        points: of the judge; `None` without a score.
        truth: the true quality.
    """

    queries: Sequence[int]
    points: Sequence[float | None]
    truth: Sequence[float]


@runtime_checkable
class Truth(Protocol):
    """A world whose maker knows what responses are worth."""

    @property
    def criteria(self) -> Sequence[str]:
        """What its judge can read, for a rubric that is fitted to labels."""
        ...

    def true_quality(self, query: str, response: str) -> float:
        """Return the true quality of a response."""
        ...

    def examine(self, rubric: str) -> Examination:
        """Return a fixed mixture of responses with the points of its own judge, at no charge."""
        ...


class Policy(Protocol):
    """A policy that is trained in steps, each under the reward of the rubric in force.

    Attributes:
        queries: what it responds to.
        rubric: the first rubric.
        truth: the true quality of its responses; `None` where nobody knows it.
    """

    queries: Sequence[str]
    rubric: str
    truth: Truth | None

    @property
    def judged(self) -> int:
        """Responses of one update that the judge reads."""
        ...

    @property
    def evaluation(self) -> int:
        """Responses of one measurement that a second judge reads."""
        ...

    def roles(self) -> Mapping[str, LM]:
        """Return the language models that come with it: judge, meta, or none."""
        ...

    def check(self, roles: Mapping[str, LM]) -> None:
        """Refuse language models of the user's, by role, under which it cannot be trained.

        Raises:
            ValueError: says which role, and what to use instead.
        """
        ...

    def saved_judge(self) -> Mapping[str, Any] | None:
        """Return what makes its own judge again, as JSON values; `None` where a user brings one."""
        ...

    def init(self, key: int) -> State:
        """Return the first policy."""
        ...

    def update(self, state: State, reward: Reward, key: int) -> State:
        """Return the policy after one update; the argument is left as it was."""
        ...

    def sample(self, state: State, count: int, key: int) -> list[tuple[int, str]]:
        """Return responses of the policy, each to a query drawn uniformly."""
        ...

    def last(self, state: State) -> Mapping[str, float]:
        """Return what to log of the last update."""
        ...

    def first(self, state: State) -> Mapping[str, float]:
        """Return what `measure` told of the first policy, to compare with."""
        ...

    def measure(
        self, state: State, reward: Reward, second: Reward | None = None
    ) -> dict[str, float]:
        """Return what to log of the trained policy: kl, and what else it can tell.

        Where the truth is known: quality (gain over the first policy) and hack_rate. Where they are
        known at no charge: score, the judge's mean share of the points that the rubric can give, in
        [-1, 1]. With a second judge: second_judge, that share by `second`, unless it stated none.
        """
        ...

    def progress(self, state: State, reward: Reward) -> tuple[float, float] | None:
        """Return quality and score for the curve of a run, at no charge; `None` without one."""
        ...
