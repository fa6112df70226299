"""The inner level: deep Q-learning in the true environment under designed rewards, batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_ranges
from metaopt.environments import Environment, Transition
from metaopt.environments.acting import Acting, Experience, Reward
from metaopt.environments.exploration import Exploration
from metaopt.environments.q_network import QNetwork, QState
from metaopt.environments.stacked import denormals_as_zero
from metaopt.environments.transitions import width
from metaopt.problems.reward_design import variables
from metaopt.problems.reward_design.language import Expression
from metaopt.problems.reward_design.recording import Recorder, Success, sample, success_of
from metaopt.problems.reward_design.returns import term_sums
from metaopt.problems.reward_design.training import MOST_POINTS, Training, Trajectories
from metaopt.problems.reward_design.variables import Variables


@tree.tagged("reward_run")
class Run(NamedTuple):
    """Trainings under C rewards at the same moment, S inner seeds of each: R = C S learners.

    Args:
        agent: the learners, those of a reward one after the other.
        experience: what they learn from.
        curves: of each reward, see `Training.curve`.
        phases: made so far.
        environment_steps, gradients: cost so far.
    """

    agent: QState
    experience: Experience
    curves: list[dict[str, list[float]]]
    phases: int
    environment_steps: int
    gradients: int


class Charged(Protocol):
    """Trainings that count what they cost."""

    @property
    def environment_steps(self) -> int:
        """Steps of learners and of greedy episodes so far."""

    @property
    def gradients(self) -> int:
        """Updates so far."""


class Trainer:
    """Trains deep Q-networks from scratch under designed rewards and says how they succeed.

    The environment is the true one and only the reward is exchanged: the learners store
    clip(r(s, a, s'), -10, 10), which reads neither time limits nor the environment's own reward.
    Nothing rescales it, so that its scale is a part of the design: errors are clipped at 1
    (`QNetwork`), and a large reward is learned slowly. The environment's own reward, written as an
    expression, gives to the bit what plain Q-learning gives.

    Args:
        environment: an `Environment`, such as `metaopt.environments.MountainCar()`.
        agent: makes the learners from the sizes of an observation and of the set of actions.
        phase: real steps of each learner between two points of the curve, a multiple of
            `environments`; a training has `inner_steps` phases.
        inner_seeds: learners S of each reward, >= 1.
        environments: environments E of each learner that are stepped together, >= 1.
        batch: transitions of an update, >= 1.
        updates_per_step: updates per real step, > 0.
        exploration: probability of a random action.
        curve_episodes: greedy episodes of each learner for a point of the curve, >= 1.
        evaluation_episodes: greedy episodes of each learner at the end, >= 1.
        recorded: most episodes that a training adds to the store, half of each kind, >= 1.
        success: how an episode succeeds, "terminated", "truncated" or a least return of the
            environment's own reward; `None` for what the environment says.
        scaled: divide what the learners see by the environment's `scale`.
        device: where the learners live.

    Raises:
        ValueError: an option out of range, a phase that does not divide, an environment that does
            not say what a success is, or one that calls its time limit an end of the task.

    Cost: real steps of the learners and steps of greedy episodes alike are environment steps.
    """

    def __init__(
        self,
        environment: Environment,
        agent: Callable[[int, int], QNetwork],
        *,
        phase: int = 1600,
        inner_seeds: int = 3,
        environments: int = 4,
        batch: int = 32,
        updates_per_step: float = 0.25,
        exploration: Exploration | None = None,
        curve_episodes: int = 4,
        evaluation_episodes: int = 16,
        recorded: int = 16,
        success: Success | None = None,
        scaled: bool = True,
        device: str = "cpu",
    ) -> None:
        self.environment, self.phase, self.inner_seeds = environment, phase, inner_seeds
        self.environments, self.batch, self.updates_per_step = environments, batch, updates_per_step
        self.exploration = Exploration() if exploration is None else exploration
        self.curve_episodes, self.evaluation_episodes = curve_episodes, evaluation_episodes
        self.recorded = recorded
        counts = ("phase", "inner_seeds", "environments", "batch", "curve_episodes",
                  "evaluation_episodes", "recorded")  # fmt: skip
        check_ranges(self, *(f"{name} >= 1" for name in counts), "updates_per_step > 0")
        if phase % environments:
            raise ValueError(
                f"Trainer needs a phase that environments divides; got phase={phase}, "
                f"environments={environments}."
            )
        self.success = success_of(environment, success)
        self.variables = variables.of(environment)
        self.device = torch.device(device)
        self.agent = agent(environment.observation_size, environment.actions)
        scale = environment.scale if scaled else [1.0] * environment.observation_size
        unit = torch.tensor(scale, device=self.device)
        self.acting = Acting(
            agent=self.agent, unit=unit, environments=environments, batch=batch,
            updates_per_step=updates_per_step,
        )  # fmt: skip

    def begin(self, rewards: int, key: int) -> Run:
        """Return new trainings under as many rewards."""
        runs, draw = rewards * self.inner_seeds, generator(key, self.device)
        agent = self.agent.init(runs, draw)
        size = torch.zeros(runs, 1, dtype=torch.long, device=self.device)
        unit = self.acting.unit
        episodes = self.environment.begin((runs, self.environments), draw, unit.dtype)
        transitions = torch.zeros(runs, 1, width(len(unit)), device=self.device)
        curves: list[dict[str, list[float]]] = [{} for _ in range(rewards)]
        return Run(agent, Experience(transitions, size, episodes), curves, 0, 0, 0)

    @torch.inference_mode()  # a tenth faster than no_grad: operations this small are all overhead
    @denormals_as_zero()
    def learn(self, run: Run, rewards: Sequence[Expression], key: int) -> Run:
        """Return the trainings one phase on, with a point more on their curves.

        Args:
            run: left as it was.
            rewards: one of each training.
            key: of all that the phase draws.
        """
        run, first = self._copied(run), run.phases * self.phase
        acted = self.acting(
            self.environment,
            self.agent.views(run.agent),
            run.experience,
            range(first, first + self.phase),
            lambda step: self.exploration(step, self.phase),
            generator(fold(key, "acting"), self.device),
            reward=self.reward(rewards),
        )
        run = run._replace(
            experience=acted.experience,
            phases=run.phases + 1,
            environment_steps=run.environment_steps + acted.steps,
            gradients=run.gradients + len(acted.experience.size) * acted.updates,
        )
        run, episodes = self.play(run, self.curve_episodes, fold(key, "curve"))
        for curve, reward, greedy in zip(run.curves, rewards, episodes, strict=True):
            for name, value in curve_point(
                reward, self.variables, greedy, run.phases * self.phase
            ).items():
                curve.setdefault(name, []).append(value)
        return run

    def reward(self, rewards: Sequence[Expression]) -> Reward:
        """Return the reward of R learners, those of each expression one after the other."""
        names = frozenset(name for reward in rewards for name in reward.names)

        def designed(action: Tensor, moved: Transition) -> Tensor:
            values = self.variables(
                moved.observation, action, moved.next_observation, moved.terminated, names
            )
            if len(rewards) == 1:
                return rewards[0](values)
            parts = []
            for number, reward in enumerate(rewards):
                block = slice(number * self.inner_seeds, (number + 1) * self.inner_seeds)
                parts.append(reward({name: value[block] for name, value in values.items()}))
            return torch.cat(parts)

        return designed

    def play(self, run: Run, episodes: int, key: int) -> tuple[Run, list[Trajectories]]:
        """Return the trainings, charged, and as many greedy episodes of each learner, by reward."""
        shape = (len(run.experience.size), episodes)
        recorder = Recorder(shape, self.environment, self.success, self.device)
        learners, draw = self.agent.views(run.agent), generator(key, self.device)
        _, lengths = self.acting.greedy(self.environment, learners, shape, draw, recorder)
        played = recorder.trajectories(lengths)
        count = self.inner_seeds * episodes
        blocks = [torch.arange(i * count, (i + 1) * count) for i in range(len(run.curves))]
        run = run._replace(environment_steps=run.environment_steps + int(lengths.sum()))
        return run, [played.select(block) for block in blocks]

    @torch.no_grad()
    def conclude(
        self, run: Run, rewards: Sequence[Expression], number: int, key: int
    ) -> tuple[Run, list[Training]]:
        """Return the trainings, charged for their evaluation, and what they leave behind."""
        run, episodes = self.play(run, self.evaluation_episodes, fold(key, "evaluation"))
        trainings = concluded(
            rewards, run.curves, episodes, self.inner_seeds, self.recorded, number
        )
        return run, trainings

    def train(
        self, rewards: Sequence[Expression], phases: int, number: int, key: int
    ) -> tuple[Run, list[Training]]:
        """Return whole trainings from scratch."""
        run = self.begin(len(rewards), fold(key, "learners"))
        for phase in range(phases):
            run = self.learn(run, rewards, fold(key, phase))
        return self.conclude(run, rewards, number, key)

    def _copied(self, run: Run) -> Run:
        """Return a copy with room for the transitions of a phase, and a spare place."""
        transitions = run.experience.transitions
        more = transitions.new_zeros(len(transitions), self.phase, transitions.shape[-1])
        longer = torch.cat([transitions, more], 1)
        return run._replace(
            agent=tree.clone(run.agent),
            experience=run.experience._replace(transitions=longer),
            curves=tree.clone(run.curves),
        )


def curve_point(
    reward: Expression, read: Variables, episodes: Trajectories, steps: int
) -> dict[str, float]:
    """Return the means over greedy episodes that are a point of the curve after `steps`."""
    sums = term_sums(reward, read, episodes)
    return {
        "steps": float(steps),
        "success": float(episodes.success.double().mean()),
        "length": float(episodes.length.double().mean()),
        "return": float(sums.pop("return").mean()),
        **{f"term {name}": float(values.mean()) for name, values in sums.items()},
    }


def concluded(
    rewards: Sequence[Expression], curves: Sequence[dict[str, list[float]]],
    episodes: Sequence[Trajectories], inner_seeds: int, recorded: int, number: int,
) -> list[Training]:  # fmt: skip
    """Return what trainings leave behind, from the last greedy episodes under each reward."""
    if not all(curves):
        raise ValueError("Reward design needs inner_steps >= 1 phases of training; got 0.")
    return [
        Training(
            reward.text, number, greedy.success.view(inner_seeds, -1).double().mean(1).tolist(),
            thinned(curve), sample(greedy, recorded),
        )
        for reward, greedy, curve in zip(rewards, episodes, curves, strict=True)
    ]  # fmt: skip


def cost_of(run: Charged, trainings: int) -> dict[str, float]:
    """Return what a run of trainings has cost, by unit."""
    return {
        "environment_steps": run.environment_steps,
        "gradients": run.gradients,
        "trainings": trainings,
    }


def thinned(curve: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return a curve with at most `MOST_POINTS` points, evenly spaced, the last one among them."""
    count = len(curve["steps"])
    most = min(count, MOST_POINTS)
    places = [(i + 1) * count // most - 1 for i in range(most)]
    return {name: [values[place] for place in places] for name, values in curve.items()}
