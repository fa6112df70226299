"""The next reward: a question to the coder about the last one, with what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.problems.reward_design.coder import Coder
from metaopt.problems.reward_design.feedback import (
    Kinds,
    rejection_feedback,
    training_feedback,
)
from metaopt.problems.reward_design.gate import Gate, Verdict
from metaopt.problems.reward_design.language import Expression
from metaopt.problems.reward_design.prompts import Assignment, asking
from metaopt.problems.reward_design.training import Training

Rewards = str | tuple[str, ...]
"""The outer variable: the text of a reward, or several that are trained under together."""

Base = Literal["latest", "best"]


class Trial(Protocol):
    """Rewards that were trained under, as `metaopt.optimizers.Search` keeps them."""

    @property
    def outer(self) -> Rewards:
        """Their texts."""

    @property
    def artifacts(self) -> Sequence[Training]:
        """What their last trainings have left; of several rewards the best trained again first."""


class Rejection(NamedTuple):
    """A reward that failed the test, and the latest training then."""

    after: Training
    reward: str
    verdict: Verdict


class Proposals:
    """Proposes rewards and tests them: a proposer and a screen of `metaopt.optimizers.Search`.

    A rejected reward goes back to the coder with the preference feedback on it; each further
    proposal is a call. Between two trainings nothing but the last rejection is remembered, and a
    search that is resumed begins its proposals again, so that it is the same to the bit.

    Args:
        coder: who writes rewards.
        assignment: what it is told of the task.
        read: parses the text of a reward.
        gate: the test on recorded episodes.
        kinds: what feedback it is given.
        count: rewards proposed and trained under together, >= 1; several are a tuple.
        base: what a proposal builds on: the "latest" training, as CARD does,
            or the "best" of all, as Eureka; of several, the best as it was trained again.
        preference_of_trained: a reward that was trained under though it had failed the test has
            preference feedback in place of its training's, as in the release of CARD.

    Attributes:
        tested, passed: rewards that were tested so far, and those that passed.
    """

    def __init__(
        self,
        coder: Coder,
        assignment: Assignment,
        read: Callable[[str], Expression],
        gate: Gate,
        kinds: Kinds | None = None,
        count: int = 1,
        base: Base = "latest",
        preference_of_trained: bool = False,
    ) -> None:
        self.coder, self.assignment, self.read, self.gate = coder, assignment, read, gate
        self.kinds, self.count, self.base = kinds or Kinds(), count, base
        self.preference_of_trained = preference_of_trained
        check_ranges(self, "count >= 1")
        check_choices(self, base=get_args(Base))
        self.tested = self.passed = 0
        self._rejected: Rejection | None = None

    def propose(self, parents: Sequence[Trial], key: int) -> Rewards:
        """Return what the coder writes next; the first parent's where it writes no reward.

        Args:
            parents: all trials, best first.
            key: of the draws.
        """
        trainings, rejected = trainings_of(parents), self._rejected
        # By identity, since searches may take turns, in which trainings are equal.
        if rejected is not None and rejected.after is _latest(trainings):
            reward, success = rejected.reward, None
            known = rejection_feedback(self.kinds, rejected.verdict, self.gate.variables)
        else:
            training = self._base(parents)
            reward, success = training.reward, training.mean_success
            known = self._known(training, trainings)
        question = asking(self.assignment, reward, success, known)
        rewards = self.coder(question, key, self.count, first=len(trainings) == 1)
        if not rewards:
            return parents[0].outer
        return rewards[0] if self.count == 1 else tuple(rewards)

    def screen(self, candidate: Rewards, trials: Sequence[Trial]) -> float:
        """Return minus the share of the test, +inf of a reward that fails it; trains nothing.

        Of several rewards it is the best one's.
        """
        trainings, best = trainings_of(trials), math.inf
        for reward in texts(candidate):
            verdict = self.gate(self.read(reward), trainings)
            self.tested += 1
            if verdict is None or verdict.passed:
                self.passed += 1
                best = min(best, -1.0 if verdict is None else -verdict.share)
                self._rejected = None
            elif best == math.inf:
                after = _latest(trainings)
                self._rejected = after and Rejection(after, reward, verdict)
        return best

    def _base(self, parents: Sequence[Trial]) -> Training:
        """Return the training that a proposal builds on."""
        trial = parents[0]
        if self.base == "latest":
            trial = max(parents, key=lambda trial: trial.artifacts[0].number)
        # Of several, the best one trained again: the success that selected it is too high.
        return trial.artifacts[0]

    def _known(self, training: Training, trainings: Sequence[Training]) -> str:
        """Return the feedback on a reward that was trained under."""
        reward = self.read(training.reward)
        if self.preference_of_trained:
            before = [t for t in trainings if t.number < training.number]
            verdict = self.gate(reward, before)
            if verdict is not None and not verdict.passed:
                return rejection_feedback(self.kinds, verdict, self.gate.variables)
        return training_feedback(self.kinds, training, reward, self.gate.variables)


def texts(rewards: Rewards) -> tuple[str, ...]:
    """Return the rewards one by one."""
    return (rewards,) if isinstance(rewards, str) else tuple(rewards)


def trainings_of(trials: Sequence[Trial]) -> list[Training]:
    """Return the trainings of all trials."""
    return [training for trial in trials for training in trial.artifacts]


def _latest(trainings: Sequence[Training]) -> Training | None:
    """Return the latest of the trainings, the first of those of one outer step."""
    return max(trainings, key=lambda training: training.number, default=None)
