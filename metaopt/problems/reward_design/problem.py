"""A reward that is designed by a language model and measured by reinforcement learning.

The inner level trains policies in the true environment under the reward; the outer level writes
the next reward after reading what came of the last. Sun et al., A Large Language Model-Driven
Reward Design Framework via Dynamic Feedback for Reinforcement Learning (CARD), Knowledge-Based
Systems 2025, arXiv 2410.14660.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Generator

from metaopt.engine.protocols import Feedback
from metaopt.engine.random import fold
from metaopt.engine.ranges import check_ranges
from metaopt.llm import LM, Client, Parameters, SimulatedLM
from metaopt.problems.reward_design.actor_critic import ActorCritic
from metaopt.problems.reward_design.coder import ROLE, Coder
from metaopt.problems.reward_design.demonstrations import Exploited, demonstrations
from metaopt.problems.reward_design.feedback import Kinds
from metaopt.problems.reward_design.gate import Gate, precision
from metaopt.problems.reward_design.guessing import guess
from metaopt.problems.reward_design.language import Expression, parse
from metaopt.problems.reward_design.language.python_rewards import parse_python
from metaopt.problems.reward_design.prompts import Answer, Assignment
from metaopt.problems.reward_design.proposing import Base, Proposals, Rewards, texts
from metaopt.problems.reward_design.report import RewardReport
from metaopt.problems.reward_design.simulated_coder import SimulatedCoder
from metaopt.problems.reward_design.tasks import first_reward, task_of
from metaopt.problems.reward_design.tpe import Per, TrajectoryPreference
from metaopt.problems.reward_design.trainer import Trainer, cost_of
from metaopt.problems.text import TextProblem


class RewardDesign(TextProblem):
    """Inner: policies trained under a reward. Outer: the reward, rewritten after its training.

        F(reward) = -(share of greedy episodes that succeed, mean over inner seeds)

    Success is the environment's word, never the reward's. Each outer step trains from scratch; the
    inner seeds are new in each, so that a reward that comes up again is measured again. The first
    reward is the environment's own. `propose` is for `metaopt.optimizers.Search(accept="archive",
    archive_size=None)`, in which the coder is told what came of the latest or of the best reward,
    and `screen` is CARD's gate: a reward that fails the test on recorded episodes is not trained
    under, costs no environment step, and goes back to the coder with the pair that it confuses.
    Without a screen all are trained under; with `preference_of_trained` the test then decides the
    feedback alone, as in the release of CARD.

    With `rewards` > 1 the outer variable is a tuple, trained in one vectorized run (Eureka). The
    best of many is optimistic: it is trained again with fresh seeds, and F is what that gives. For
    the same reason the reward of the whole run is trained again at the end: `success`.

    Args:
        trainer: the inner level, by deep Q-learning, or by `ActorCritic`.
        client: makes the client from the roles, as `functools.partial(Client, ...)`.
        roles: the language model of the role coder; `SimulatedCoder` where it has none.
        skill: of the simulated coder, in [0, 1]; 0 writes random rewards.
        rewards: rewards K of an outer step, >= 1; 1 is an expression, more are a tuple.
        base: which reward the coder builds on, "latest" (CARD) or "best" (Eureka).
        preference_of_trained: give the feedback of the test on a reward that was trained under
            though it fails it, as the release of CARD does, in place of its training's.
        tpe: the test on recorded episodes.
        demonstrations: successes of a scripted controller, and as many failures of random actions,
            that are recorded before the first training, >= 0.
        seed: of the demonstrations.
        kinds: which feedback the coder is given.
        first: text of the first reward; `None` for the environment's own, which is known for
            MountainCar, Acrobot and CartPole.
        task: what the coder is told of the task; `None` for a sentence on the environment.
        temperature: of the coder.
        max_tokens: longest answer.
        attempts: most answers that are asked for until one is a reward, >= 1.

    Raises:
        ValueError: an argument outside its range, no or an unknown role, a first reward that is
            none or unknown, demonstrations without a controller, or a paid coder without a budget.

    Cost: of an outer step, K trainings of `inner_seeds` learners (and one more where K > 1), and a
    call of the coder for each reward proposed, rejected ones included, `attempts` at most; of the
    first, the steps of all episodes played for demonstrations, too.

    References: Sun et al., Knowledge-Based Systems, 2025, arXiv 2410.14660; Ma et al., Eureka,
    ICLR 2024, arXiv 2310.12931.
    """

    metric_names = ("success", "selected_success", "hacked", "passed", "precision")

    def __init__(
        self,
        trainer: Trainer | ActorCritic,
        client: Callable[[Mapping[str, LM]], Client] = Client,
        roles: Mapping[str, LM] | None = None,
        *,
        skill: float = 0.8,
        rewards: int = 1,
        base: Base = "latest",
        preference_of_trained: bool = False,
        tpe: TrajectoryPreference | None = None,
        demonstrations: int = 0,
        seed: int = 0,
        kinds: Kinds | None = None,
        first: str | None = None,
        task: str | None = None,
        temperature: float = 0.7,
        max_tokens: int = 1024,
        attempts: int = 3,
    ) -> None:
        self.trainer, self.variables = trainer, trainer.variables
        self.rewards, self.demonstrations = rewards, demonstrations
        check_ranges(self, "rewards >= 1", "demonstrations >= 0")
        super().__init__(client(_roles(roles or {}, skill)))
        task = task_of(trainer.environment, trainer.success) if task is None else task
        self.coder = Coder(self.client, self._read, Parameters(temperature, max_tokens), attempts)
        self.proposals = Proposals(
            self.coder, Assignment(task, self.variables.names), self.expression,
            self._gate(tpe or TrajectoryPreference(), demonstrations, seed), kinds, rewards, base,
            preference_of_trained,
        )  # fmt: skip
        self.exploited = Exploited(trainer.environment, trainer.success, self.variables)
        first_text = first_reward(trainer.environment) if first is None else first
        try:
            self.first = self.expression(first_text).text
        except ValueError as error:
            raise ValueError(f"first={first_text!r} is no reward. {error}") from error
        self.report = RewardReport(self)
        self.client.require({ROLE: rewards})
        self._final_cost: dict[str, float] = {}

    def expression(self, text: str) -> Expression:
        """Return the reward that a text states; raise a `ValueError` where it states none."""
        return parse(text, self.variables.names)

    def init_outer(self, generator: Generator) -> str | tuple[str, ...]:
        """Return the first reward."""
        return self.first if self.rewards == 1 else (self.first,)

    def init_inner(self, outer: Any, inner: dict[str, Any] | None, key: int) -> dict[str, Any]:
        """Return new learners under the reward, with the history of all trainings so far."""
        number = inner["number"] + 1 if inner else 1
        self.client.begin(number)
        tested, passed, unreadable = self._counted()
        return {
            "number": number,
            "rewards": list(texts(outer)),
            "run": self.trainer.begin(len(texts(outer)), fold(key, "learners")),
            "phases": 0,
            "tested": tested,
            "passed": passed,
            "unreadable": unreadable,
            "history": inner["history"] if inner else [],
            "final": None,
        }

    def inner_step(self, outer: Any, inner: dict[str, Any], key: int) -> dict[str, Any]:
        """Return the state after a phase of the trainings."""
        run = self.trainer.learn(inner["run"], self._expressions(inner["rewards"]), key)
        return {**inner, "run": run, "phases": run.phases}

    def evaluate(self, outer: Any, inner: dict[str, Any], key: int) -> Feedback:
        """Return minus the success under the reward; the trainings are the artifacts.

        Of several rewards the best is trained once more, comes first, and counts.
        """
        number, rewards = inner["number"], self._expressions(inner["rewards"])
        run, trainings = self.trainer.conclude(inner["run"], rewards, number, fold(key, "end"))
        cost = cost_of(run, len(rewards))
        selected = max(trainings, key=lambda training: training.mean_success)
        if len(trainings) > 1:
            again, others = [self.expression(selected.reward)], list(trainings)
            fresh, trainings = self.trainer.train(
                again, inner["phases"], number, fold(key, "winner")
            )
            cost = {unit: cost[unit] + spent for unit, spent in cost_of(fresh, 1).items()}
            trainings += others
        if number == 1:
            cost["environment_steps"] += self._demonstration_steps
        metrics = {
            "reward/success": trainings[0].mean_success,
            "reward/selected_success": selected.mean_success,
            "reward/return": trainings[0].curve["return"][-1],
            "reward/terms": float(len(trainings[0].terms)),
            "reward/rejected": float(inner["tested"] - inner["passed"]),
            "reward/unreadable": float(inner["unreadable"]),
        }
        if (hacked := self.exploited.share(trainings, self.expression)) is not None:
            metrics["reward/hacked"] = hacked
        return Feedback(
            0.0 - trainings[0].mean_success, artifacts=trainings, metrics=metrics,
            cost={**cost, **self.client.end(number)}, stop=self.client.stopped,
        )  # fmt: skip

    def observe(self, outer: Any, inner: dict[str, Any], feedback: Feedback) -> dict[str, Any]:
        """Return the state with the trainings in its history, and without their learners."""
        entries = [
            {
                "number": inner["number"],
                "reward": training.reward,
                "success": training.success,
                "return": training.curve["return"][-1],
                "filed": place == 0,
                "tested": inner["tested"],
                "passed": inner["passed"],
                "hacked": self.exploited.share([training], self.expression),
            }
            for place, training in enumerate(feedback.artifacts)
        ]
        return {**inner, "history": [*inner["history"], *entries], "run": None}

    def finish(self, outer: Any, inner: dict[str, Any] | None, key: int) -> dict[str, Any] | None:
        """Return the state with a training of the best reward with fresh inner seeds."""
        if inner is None or not inner["history"]:
            return inner
        reward = self.expression(self.winner(outer, inner))
        run, (training,) = self.trainer.train(
            [reward], inner["phases"], inner["number"] + 1, fold(key, "final")
        )
        self._final_cost = cost_of(run, 1)
        return {**inner, "final": training}

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return what the last training has cost."""
        return self._final_cost

    def metrics(self, outer: Any, inner: dict[str, Any] | None) -> dict[str, float]:
        """Return figures of the run so far, and `success` of the best reward at its end.

        `selected_success` is the highest value, which is optimistic; `hacked` the share of
        trainings whose reward was exploited (see `Exploited`), where that can be told; `passed` the
        share of the rewards tested that the test let pass, where any was tested; `precision` the
        share of good ones among those (see `gate.precision`).
        """
        if inner is None or not inner["history"]:
            return {}
        filed = [entry for entry in inner["history"] if entry["filed"]]
        numbers = {"selected_success": max(fmean(entry["success"]) for entry in filed)}
        if tested := sum(entry["tested"] for entry in filed):
            numbers["passed"] = sum(entry["passed"] for entry in filed) / tested
        if (share := precision(inner["history"], self.demonstrations > 0)) is not None:
            numbers["precision"] = share
        hacked = [e["hacked"] for e in inner["history"] if e["hacked"] is not None]
        if hacked:
            numbers["hacked"] = fmean(hacked)
        if inner["final"] is not None:
            numbers["success"] = inner["final"].mean_success
        return numbers

    def winner(self, outer: Any, inner: Mapping[str, Any]) -> str:
        """Return the reward of an outer variable that has been filed: of several the best."""
        rewards = texts(outer)
        filed = [e for e in inner["history"] if e["filed"] and e["reward"] in rewards]
        best = max(filed, key=lambda entry: fmean(entry["success"]), default=None)
        return rewards[0] if best is None else str(best["reward"])

    def propose(self, parents: Sequence[Any], key: int) -> Rewards:
        """Return the coder's next rewards; the first parent's where it has none."""
        return self.proposals.propose(parents, key)

    def screen(self, candidate: Rewards, trials: Sequence[Any]) -> float:
        """Return minus the share of recorded episodes in order; +inf for a reward that fails."""
        return self.proposals.screen(candidate, trials)

    def _gate(self, tpe: TrajectoryPreference, demonstrated: int, seed: int) -> Gate:
        """Return the test with what is recorded before the first training."""
        trainer, before = self.trainer, None
        self._demonstration_steps = 0
        if demonstrated:
            key = fold(seed, "demonstrations")
            before, self._demonstration_steps = demonstrations(
                trainer.environment, trainer.success, demonstrated, key
            )
        per: Per = "step" if trainer.success == "terminated" else "episode"
        return Gate(tpe, self.variables, tpe.per or per, before)

    def _counted(self) -> tuple[int, int, int]:
        """Return rewards tested and passed, and answers unreadable, since the last outer step."""
        # From zero in each step, since what a resumed run counts begins there.
        proposals, coder = self.proposals, self.coder
        counts = proposals.tested, proposals.passed, coder.unreadable
        proposals.tested = proposals.passed = coder.unreadable = 0
        return counts

    def _expressions(self, texts: Sequence[str]) -> list[Expression]:
        return [self.expression(text) for text in texts]

    def _read(self, answer: Answer) -> str:
        """Return the reward of an answer of the coder."""
        read = parse_python if answer.python else parse
        return read(answer.text, self.variables.names).text


def _roles(roles: Mapping[str, LM], skill: float) -> dict[str, LM]:
    unknown = sorted(set(roles) - {ROLE})
    if unknown:
        raise ValueError(f"roles names {unknown[0]!r}; the only role is {ROLE}.")
    return {ROLE: SimulatedLM(SimulatedCoder(skill, guess)), **roles}
