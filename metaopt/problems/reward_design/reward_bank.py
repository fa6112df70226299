"""A bank of rewards, all trained under at once, on which a test of rewards is judged."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from metaopt.engine.protocols import Feedback, Problem
from metaopt.engine.random import fold
from metaopt.engine.ranges import check_ranges
from metaopt.problems.reward_design.bank_analysis import Bank, savings, seedable, verdicts
from metaopt.problems.reward_design.bank_report import RULES, BankReport
from metaopt.problems.reward_design.language import Expression, parse
from metaopt.problems.reward_design.returns import step_rewards
from metaopt.problems.reward_design.tpe import Per, Rule, TrajectoryPreference, rates
from metaopt.problems.reward_design.trainer import Trainer, cost_of
from metaopt.problems.reward_design.training import GOOD, Training, join


class RewardBank(Problem):
    """Train under every reward of a bank, and ask a test of rewards about each afterwards.

    Outer variable: the texts of all rewards, which nothing changes. Inner level: one phase of
    `trainer` a step, all rewards batched. F = minus the mean success. For each of the test's four
    rules, named by `per` and `rule` as in `step_hardest`, the metrics are

    - `auroc`, `pass`, `precision`, `recall` of the test on a store of all policies' episodes, see
      `bank_analysis.verdicts`: the best case, since a search has no such store;
    - `best_3`, `best_6`, `solved`, `until`, `proposals_6` of a search in random order that skips
      what fails, see `bank_analysis.savings`, for "step" alone; for `none` without a test, for
      `seeded` with a store that starts with episodes of two rewards, and for `without` without
      these two and without a test.

    Args:
        trainer: trains under them.
        rewards: their texts, by name.
        delta: least share that passes.
        store: episodes of the store, half of each kind.
        permutations: random orders of a search, >= 1.
        seeds: successes, and failures, that a seeded store starts with, >= 1.
        seed: of the store's draw and of the orders.

    Raises:
        ValueError: an argument out of range, or a text that is no reward.
    """

    def __init__(
        self,
        trainer: Trainer,
        rewards: Mapping[str, str],
        delta: float = 0.8,
        store: int = 200,
        permutations: int = 1500,
        seeds: int = 3,
        seed: int = 0,
    ) -> None:
        self.trainer, self.rewards = trainer, dict(rewards)
        self.delta, self.store, self.permutations = delta, store, permutations
        self.seeds, self.seed = seeds, seed
        check_ranges(self, "0 <= delta <= 1", "store >= 2", "permutations >= 1", "seeds >= 1")
        names = trainer.variables.names
        self.expressions = [_reward(name, text, names) for name, text in self.rewards.items()]
        self.report = BankReport(list(self.rewards), self.metrics)

    def init_outer(self, generator: Any) -> tuple[str, ...]:
        """Return the texts of all rewards."""
        return tuple(expression.text for expression in self.expressions)

    def init_inner(self, outer: Any, inner: Mapping[str, Any] | None, key: int) -> dict[str, Any]:
        """Return new trainings."""
        run = self.trainer.begin(len(self.expressions), fold(key, "learners"))
        return {"run": run, "trainings": []}

    def inner_step(self, outer: Any, inner: Mapping[str, Any], key: int) -> dict[str, Any]:
        """Return the trainings one phase on."""
        run = self.trainer.learn(inner["run"], self.expressions, key)
        return {**inner, "run": run}

    def evaluate(self, outer: Any, inner: Mapping[str, Any], key: int) -> Feedback:
        """Return minus the mean success; the trainings are the artifacts."""
        run, trainings = self.trainer.conclude(inner["run"], self.expressions, 1, key)
        success = [training.mean_success for training in trainings]
        cost = cost_of(run, len(trainings))
        return Feedback(-float(np.mean(success)), artifacts=trainings, cost=cost)

    def observe(self, outer: Any, inner: dict[str, Any], feedback: Feedback) -> dict[str, Any]:
        """Return the state with the trainings, and without their learners."""
        return {**inner, "run": None, "trainings": feedback.artifacts}

    def metrics(self, outer: Any, inner: Mapping[str, Any]) -> Mapping[str, float]:
        """Return what the test says of the rewards, and what it would have saved."""
        trainings: Sequence[Training] = inner["trainings"]
        if not trainings:
            return {}
        good = [training.mean_success > GOOD for training in trainings]
        return {"good": float(np.mean(good)), **dict(self._figures(trainings))}

    def _figures(self, trainings: Sequence[Training]) -> Iterator[tuple[str, float]]:
        banks = {per: self.bank(trainings, per) for per in get_args(Per)}
        for per, rule in RULES:
            share = TrajectoryPreference(rule=rule).share
            figures = verdicts(banks[per], share, self.delta, self.store, fold(self.seed, "store"))
            yield from ((f"{name}_{per}_{rule}", value) for name, value in figures.items())
        hardest, pairs = (TrajectoryPreference(rule=rule).share for rule in get_args(Rule))
        searches: dict[str, dict[str, Any]] = {
            "none": {"share": None}, "hardest": {"share": hardest}, "pairs": {"share": pairs},
            "seeded": {"share": hardest, "seeded": self.seeds},
            "without": {"share": None, "seeded": self.seeds, "without": True},
        }  # fmt: skip
        if not seedable(banks["step"], self.seeds):
            del searches["seeded"], searches["without"]
        for search, options in searches.items():
            saved = savings(
                banks["step"], threshold=self.delta, permutations=self.permutations,
                key=fold(self.seed, "orders"), **options,
            )  # fmt: skip
            yield from ((f"{name}_{search}", value) for name, value in saved.items())

    def bank(self, trainings: Sequence[Training], per: Per) -> Bank:
        """Return the trainings with what each reward gives for each recorded episode."""
        episodes = join([training.trajectories for training in trainings])
        rated = [
            rates(
                step_rewards(reward, self.trainer.variables, episodes), episodes.length, per
            ).numpy()
            for reward in self.expressions
        ]
        counts = [len(training.trajectories.length) for training in trainings]
        return Bank(
            np.array([training.mean_success for training in trainings]),
            np.repeat(np.arange(len(trainings)), counts),
            episodes.success.numpy(),
            np.stack(rated).astype(float),
        )


def _reward(name: str, text: str, names: Collection[str]) -> Expression:
    """Return the reward of a name; the error of a text that is none says which it is."""
    try:
        return parse(text, names)
    except ValueError as error:
        raise ValueError(f"rewards[{name!r}]={text!r} is no reward. {error}") from error
