"""Model-based reinforcement learning whose rollout length is steered while it learns.

The inner level is R runs of Dyna with deep Q-networks, batched; the outer variable is the rollout
length K of each run, set again in every phase. Bhatia, Thomas and Zilberstein, "Adaptive
Rollout Length for Model-Based RL Using Model-Free Deep RL", arXiv 2206.02380, 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback, Problem
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.environments import Environment
from metaopt.environments.acting import Acting
from metaopt.environments.exploration import Exploration
from metaopt.environments.q_network import QNetwork
from metaopt.environments.stacked import denormals_as_zero
from metaopt.environments.transitions import width
from metaopt.problems.rollout_length.acting import act
from metaopt.problems.rollout_length.evaluation import greedy_return, model_errors
from metaopt.problems.rollout_length.options import (
    Groups,
    Lengths,
    check_outer_steps,
    lengths_of_runs,
    variants,
)
from metaopt.problems.rollout_length.planning import Planned, Planner, plan
from metaopt.problems.rollout_length.report import ScheduleReport
from metaopt.problems.rollout_length.state import Records, Runs
from metaopt.problems.rollout_length.world_model import WorldModel

Score = Literal["training", "greedy"]
KINDS = ("return", "auc")
"""The metrics of each test: the final score, and the mean over phases of the return in training."""


class RolloutLength(Problem):
    """Set how far a learned model is rolled out, phase by phase, so that learning ends well.

    Inner level: N real steps in T = N / P phases. Outer step 0 of an episode makes P real steps
    and fits the model; outer steps 1..T - 1 plan with the rollout length K that was asked for,
    make P real steps and fit; outer step T plans and evaluates the greedy policy. Q-learning goes
    on during the real steps and, on synthetic data alone, during planning. With K = 0 a run does
    not plan. An episode therefore has T decisions in T + 1 outer steps (the first length is not
    read), and the next outer step begins another with R new inner runs.

    Outer level: F = minus the mean over runs of J' - J, with J the mean return of the episodes
    that ended in the last phase (its last value where none did), J' its value one outer step later,
    and the final score in the place of the last J'; over an episode these add up to the final score
    minus the first J. The steps of greedy scores cost as real ones, except at the end of a test.
    A gradient, in the costs, is that of one run's learner or of one run's world model; the model
    is fitted in every run, whether or not it plans, for the log has its losses.
    `Feedback.done` stays false, because the count of episodes must survive.

    Observation: `state` (R, 5), scaled to about 1 and clipped: share of the real steps that
    remains, K / cap, J, error of the model's returns, and of its lengths of episodes, both on the
    episodes of the last phase under the current policy. `length` (R), `reward` J' - J (R),
    `score` (R): J, at the end the final score; `step` 0..T, `steps` T, `done`; `test`: not to be
    learned from.

    Randomness is shared by the runs: run r of R is not run r of another R. What a run learns does
    not depend on the lengths of the others, to the bit as long as all of them plan.

    Args:
        environment: an `Environment`, such as
            `metaopt.environments.CartPole()`.
        agent: makes the learners from the sizes of an observation and of the set of actions.
        model: makes the world models, likewise.
        runs: number R of inner runs, >= 1.
        steps: real steps N of an inner run, a multiple of `phase`.
        phase: real steps P between two decisions, a multiple of `environments`.
        environments: environments E of each run that are stepped together, >= 1.
        batch: transitions of an update, >= 1.
        updates_per_step: updates per real step, and per synthetic one, > 0.
        planner: how rollouts are made, their largest length among it.
        planning: "synthetic"; "real" makes as many updates as planning would on real data instead
            and reads no length, the control for the number of updates; a list has one of them for
            each equal group of the runs.
        exploration: probability of a random action in the environment.
        first_length: length that the first decision starts from, in 0..cap.
        score: what J is: "training", the returns while learning, or "greedy", the mean of
            `score_episodes` further episodes without exploration at the end of each phase.
        score_episodes: episodes of a greedy score, >= 1.
        error_episodes: latest episodes of a phase on which the model's errors are measured, at
            least `environments`; 0 leaves these features at 0.
        training_episodes: episodes (of R inner runs each) before the tests, >= 0.
        tests: "default", the environment itself, or names of its variants, at least one, none
            twice. The first one is reported as `return`, another one as `return_<name>`.
        evaluation_episodes: episodes of the final score, >= 1.
        clip: bound on the size of the features, > 0, or `None`.
        scaled: divide observations by the environment's `scale`.
        groups: names of equal groups of the runs, for tables and figures; `None` for one group.
        device: where the runs live.
        outer_steps: outer steps of the whole run, for a check that they fit; `None` for none.

    Raises:
        ValueError: an option out of range, or numbers that do not fit each other.
    """

    def __init__(
        self,
        environment: Environment,
        agent: Callable[[int, int], QNetwork],
        model: Callable[[int, int], WorldModel],
        *,
        runs: int = 64,
        steps: int = 2400,
        phase: int = 240,
        environments: int = 4,
        batch: int = 32,
        updates_per_step: float = 0.25,
        planner: Planner | None = None,
        planning: str | Sequence[str] = "synthetic",
        exploration: Exploration | None = None,
        first_length: int = 0,
        score: Score = "training",
        score_episodes: int = 8,
        error_episodes: int = 4,
        training_episodes: int = 0,
        tests: Sequence[str] = ("default",),
        evaluation_episodes: int = 100,
        clip: float | None = 2.0,
        scaled: bool = True,
        groups: Sequence[str] | None = None,
        device: str = "cpu",
        outer_steps: int | None = None,
    ) -> None:
        self.runs, self.steps, self.phase, self.environments = runs, steps, phase, environments
        self.batch, self.updates_per_step, self.clip = batch, updates_per_step, clip
        self.score, self.score_episodes, self.error_episodes = score, score_episodes, error_episodes
        self.training_episodes, self.evaluation_episodes = training_episodes, evaluation_episodes
        self.first_length, self.decisions = first_length, steps // max(1, phase)
        self.planner = Planner() if planner is None else planner
        self.exploration = Exploration() if exploration is None else exploration
        self._check_options()
        self.groups = Groups(runs, groups, planning)
        self.real = self.groups.real
        self.names, self.training = list(tests), environment
        metrics = [self._metric_name(kind, i) for i in range(len(tests)) for kind in KINDS]
        self.metric_names = [*metrics, *(f"{name}_se" for name in metrics if runs > 1)]
        self.tested = variants(environment, tests)
        self.device = torch.device(device)
        check_outer_steps(outer_steps, self.decisions + 1, self.outer_steps)
        self.agent = agent(environment.observation_size, environment.actions)
        self.model = model(environment.observation_size, environment.actions)
        scale = environment.scale if scaled else [1.0] * environment.observation_size
        self.unit = torch.tensor(scale, device=self.device)
        self.acting = Acting(
            agent=self.agent, unit=self.unit, environments=environments, batch=batch,
            updates_per_step=updates_per_step,
        )  # fmt: skip
        self.report = ScheduleReport(self.names, self.groups, phase, self.outer_steps)

    def _check_options(self) -> None:
        """Raise a `ValueError` that names the first option out of range."""
        counts = ("runs", "steps", "phase", "environments", "batch", "score_episodes")
        check_ranges(
            self, *(f"{name} >= 1" for name in counts), "evaluation_episodes >= 1",
            "error_episodes >= 0", "training_episodes >= 0", "updates_per_step > 0",
            "clip > 0 or null",
        )  # fmt: skip
        if self.steps % self.phase or self.phase % self.environments:
            raise ValueError(
                f"RolloutLength needs steps divisible by phase, and phase by environments; got "
                f"steps={self.steps}, phase={self.phase}, environments={self.environments}."
            )
        if 0 < self.error_episodes < self.environments:
            raise ValueError(
                f"RolloutLength needs error_episodes=0 or at least "
                f"environments={self.environments}; got {self.error_episodes}."
            )
        check_choices(self, score=get_args(Score))
        self.planner.slots(self.phase)  # refuses a phase that is too short
        if not 0 <= self.first_length <= self.planner.cap:
            raise ValueError(
                f"RolloutLength needs first_length in 0..{self.planner.cap}, the planner's cap; "
                f"got {self.first_length}."
            )

    @property
    def outer_steps(self) -> int:
        """Outer steps of all training episodes and tests together."""
        return (self.training_episodes + len(self.names)) * (self.decisions + 1)

    def init_outer(self, generator: Generator) -> Tensor:
        """Return the first lengths, (R) integers."""
        return torch.full((self.runs,), self.first_length)

    def init_inner(self, outer: Lengths, inner: Runs | None, key: int) -> Runs:
        """Return the runs as they are, or new ones at the start."""
        if inner is not None:
            return inner
        nothing = Records.none(len(self.names), self.runs, self.decisions, self.device)
        return self._begin(0, nothing, fold(key, "runs"))

    @torch.no_grad()
    @denormals_as_zero()
    def inner_step(self, outer: Lengths, inner: Runs, key: int) -> Runs:
        """Return the runs after one outer step: planning, then a phase or the final score."""
        lengths = lengths_of_runs(outer, self.runs, self.planner.cap)
        if inner.step == self.decisions:
            runs = self._begin(inner.episode + 1, inner.records, fold(key, "runs"))
        else:
            runs = tree.clone(inner)
        runs = runs._replace(step=runs.step + 1, environment_steps=0, gradients=0)
        before = runs.score
        if runs.step > 0:
            runs = self._plan(runs, lengths, fold(key, "planning"))
        if runs.step < self.decisions:
            runs = self._phase(runs, key)
        else:
            learns = runs.episode < self.training_episodes
            runs = self._greedy(runs, self.evaluation_episodes, learns, key)
        gain = runs.score - before if runs.step > 0 else torch.zeros_like(before)
        return self._recorded(runs._replace(gain=gain))

    def evaluate(self, outer: Lengths, inner: Runs, key: int) -> Feedback:
        """Return minus the mean reward, and what an acting optimizer observes."""
        left = 1 - min(inner.step + 1, self.decisions) / self.decisions
        state = inner.features(left, self.planner.cap, self.training)
        observation = {
            "state": state if self.clip is None else state.clamp(-self.clip, self.clip),
            "length": inner.length,
            "reward": inner.gain,
            "done": inner.step == self.decisions,
            "score": inner.score,
            "test": inner.episode >= self.training_episodes,
            "step": inner.step,
            "steps": self.decisions,
        }
        cost = {"environment_steps": inner.environment_steps, "gradients": inner.gradients}
        value, logged = -inner.gain.mean(), inner.logged()
        return Feedback(value, observation=observation, metrics=logged, cost=cost)

    def metrics(self, outer: Lengths, inner: Runs) -> dict[str, float]:
        """Return mean and standard error over runs of final score and area, test by test.

        `return` is the final score, `auc` the mean over phases of the return in training; absent
        where the test is not over yet. Over several groups the names begin with `all_groups_`.
        """
        metrics = {}
        for test, scores in enumerate(inner.records.scores):
            if bool(scores[:, -1].isnan().any()):
                continue  # the test is not over
            scores = scores.double()
            for kind, values in zip(KINDS, (scores[:, -1], scores[:, :-1].mean(1)), strict=True):
                name = self._metric_name(kind, test)
                metrics[name] = float(values.mean())
                if self.runs > 1:
                    metrics[f"{name}_se"] = float(values.std() / self.runs**0.5)
        return metrics

    def _metric_name(self, kind: str, test: int) -> str:
        prefix = "all_groups_" if len(self.groups.names) > 1 else ""
        return f"{prefix}{kind}" + (f"_{self.names[test]}" if test else "")

    def _begin(self, episode: int, records: Records, key: int) -> Runs:
        """Return new runs."""
        runs, zero = self.runs, torch.zeros(self.runs, device=self.device)
        draw, environment = self._draw(key), self._environment(episode)
        size = self.steps + self.planner.steps(self.phase) + 1
        counts, real = zero.long(), self.real.to(self.device)
        return Runs(
            agent=self.agent.init(runs, draw),
            model=self.model.init(runs, draw),
            transitions=torch.zeros(runs, size, width(len(self.unit)), device=self.device),
            size=torch.zeros_like(counts).unsqueeze(1),
            episodes=environment.begin((runs, self.environments), draw, zero.dtype),
            length=torch.full_like(counts, self.first_length).masked_fill(real, 0),
            score=torch.full_like(zero, environment.worst),
            gain=zero,
            errors=torch.zeros(runs, 2, device=self.device),
            planned=Planned(*(torch.zeros_like(counts) for _ in Planned._fields)),
            updates=torch.zeros_like(counts),
            records=tree.clone(records),
            episode=episode,
            step=-1,
            environment_steps=0,
            gradients=0,
        )

    def _plan(self, runs: Runs, lengths: Tensor, key: int) -> Runs:
        """Return the runs after planning with `lengths` (R)."""
        lengths = lengths.masked_fill(self.real, 0)
        planned = plan(self, runs, lengths, self._draw(key))
        return runs._replace(
            length=lengths.to(self.device),
            planned=planned,
            updates=runs.updates + planned.updates,
            gradients=runs.gradients + int(planned.updates.sum()),
        )

    def _phase(self, runs: Runs, key: int) -> Runs:
        """Return the runs after a phase of real steps, with models fitted to all of them."""
        environment = self._environment(runs.episode)
        runs, finished = act(self, environment, runs, self._draw(fold(key, "acting")))
        draw, before = self._draw(fold(key, "model")), _steps(runs)
        runs = runs._replace(model=self.model.fit(runs.model, runs.transitions, runs.size, draw))
        runs = runs._replace(gradients=runs.gradients + _steps(runs) - before)
        if self.error_episodes:
            runs = runs._replace(errors=model_errors(self, environment, runs, finished, draw))
        if self.score == "greedy":
            return self._greedy(runs, self.score_episodes, True, key)
        return runs._replace(score=finished.mean(runs.score))

    def _greedy(self, runs: Runs, episodes: int, charged: bool, key: int) -> Runs:
        """Return the runs with the mean return of their greedy policies as score."""
        environment, draw = self._environment(runs.episode), self._draw(fold(key, "greedy"))
        score, made = greedy_return(self, environment, runs, episodes, draw)
        spent = runs.environment_steps + (made if charged else 0)
        return runs._replace(score=score, environment_steps=spent)

    def _recorded(self, runs: Runs) -> Runs:
        """Return the runs with their step in the records; `records` is changed in place."""
        test = runs.episode - self.training_episodes
        if 0 <= test < len(self.names):
            runs.records.scores[test, :, runs.step] = runs.score
            runs.records.updates[test] = runs.updates.to(runs.score.dtype)
            if runs.step > 0:
                runs.records.lengths[test, :, runs.step - 1] = runs.length.to(runs.score.dtype)
        return runs

    def _environment(self, episode: int) -> Environment:
        """Return the environment of an episode; after the last test, that of the last test."""
        test = min(episode - self.training_episodes, len(self.tested) - 1)
        return self.training if test < 0 else self.tested[test]

    def _draw(self, key: int) -> Generator:
        return generator(key, self.device)


def _steps(runs: Runs) -> int:
    """Return how many steps the world models have taken, over all runs."""
    return int(runs.model.moments.steps.double().sum())
