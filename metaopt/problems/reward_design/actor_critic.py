"""The inner level by a library's actor-critic learners, for actions that are vectors."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_ranges
from metaopt.environments import GymnasiumVector
from metaopt.environments.acting import play
from metaopt.problems.reward_design import variables
from metaopt.problems.reward_design.language import Expression
from metaopt.problems.reward_design.recording import Recorder, Success, success_of
from metaopt.problems.reward_design.trainer import concluded, curve_point
from metaopt.problems.reward_design.training import Training, Trajectories

logger = logging.getLogger(__name__)


@tree.tagged("actor_critic_run")
class ActorCriticRun(NamedTuple):
    """Trainings under C rewards at the same moment; the learners are in the library's memory.

    Args:
        keys: of the learners and of each phase so far, from which they can be trained again.
        curves: of each reward, see `Training.curve`.
        phases: made so far.
        environment_steps, gradients: cost so far.
    """

    keys: list[int]
    curves: list[dict[str, list[float]]]
    phases: int
    environment_steps: int
    gradients: int


class ActorCritic:
    """Trains policies of Stable-Baselines3 under designed rewards. Needs the extra `actor-critic`.

    It takes the place of `Trainer` where actions are vectors, as in MuJoCo's and Box2D's tasks. The
    learners of all inner seeds are trained one after the other. They are in no checkpoint: a run
    that goes on in another process trains those of its current outer step from the start again and
    says so. On one machine that gives the same learners; the library does not promise it.

    Example:
        hill = GymnasiumVector("MountainCarContinuous-v0")
        trainer = ActorCritic(hill, "SAC", {"learning_rate": 1e-3}, success="terminated")
        problem = RewardDesign(trainer)

    Args:
        environment: one of gymnasium's.
        algorithm: a class of Stable-Baselines3, such as "SAC", "TD3" or "PPO".
        options: further arguments of it, such as {"learning_rate": 1e-3, "use_sde": true}.
        phase: real steps of each learner between two points of the curve, >= 1; an algorithm that
            collects more at a time takes those.
        inner_seeds: learners of each reward, >= 1.
        environments: environments of each learner, >= 1.
        curve_episodes: greedy episodes of each learner for a point of the curve, >= 1.
        evaluation_episodes: greedy episodes of each learner at the end, >= 1.
        recorded: most episodes that a training adds to the store, half of each kind, >= 1.
        success: how an episode succeeds, "terminated", "truncated" or a least return of the
            environment's own reward.
        device: where the learners live.

    Raises:
        ValueError: an option out of range, an environment that is not gymnasium's, a library or an
            algorithm that is not there, or no word on what a success is.

    References: Raffin et al., Stable-Baselines3, JMLR 22(268), 2021; Haarnoja et al., Soft
    Actor-Critic, ICML 2018.
    """

    def __init__(
        self,
        environment: GymnasiumVector,
        algorithm: str = "SAC",
        options: Mapping[str, Any] | None = None,
        *,
        phase: int = 2000,
        inner_seeds: int = 2,
        environments: int = 1,
        curve_episodes: int = 2,
        evaluation_episodes: int = 16,
        recorded: int = 16,
        success: Success | None = None,
        device: str = "cpu",
    ) -> None:
        if not isinstance(environment, GymnasiumVector):
            raise ValueError(
                f"ActorCritic needs an environment of gymnasium; got {type(environment).__name__}. "
                "Set data@problem.trainer.environment=rollout_length/gymnasium and "
                "problem.trainer.environment.id."
            )
        self.environment, self.algorithm, self.options = environment, algorithm, dict(options or {})
        self.phase, self.inner_seeds, self.environments = phase, inner_seeds, environments
        self.curve_episodes, self.evaluation_episodes = curve_episodes, evaluation_episodes
        self.recorded, self.device = recorded, device
        counts = ("phase", "inner_seeds", "environments", "curve_episodes", "evaluation_episodes",
                  "recorded")  # fmt: skip
        check_ranges(self, *(f"{name} >= 1" for name in counts))
        self.success = success_of(environment, success)
        self.variables = variables.of(environment)
        self._live: tuple[list[int], list[Any]] | None = None
        self._learner(None, 0)  # so that a mistake is an error before anything is trained

    def begin(self, rewards: int, key: int) -> ActorCriticRun:
        """Return new trainings under as many rewards."""
        return ActorCriticRun([key], [{} for _ in range(rewards)], 0, 0, 0)

    def learn(self, run: ActorCriticRun, rewards: Sequence[Expression], key: int) -> ActorCriticRun:
        """Return the trainings one phase on, with a point more on their curves.

        Args:
            run: left as it was.
            rewards: one of each training.
            key: of all that the phase draws.
        """
        learners = self._learners(run, rewards)
        steps, gradients = self._phase(learners, key)
        keys = [*run.keys, key]
        self._live = (keys, learners)
        episodes, played = self._play(learners, self.curve_episodes, fold(key, "curve"))
        curves = [{name: list(values) for name, values in curve.items()} for curve in run.curves]
        longest = max(learner.num_timesteps for learner in learners)
        for curve, reward, greedy in zip(curves, rewards, episodes, strict=True):
            for name, value in curve_point(reward, self.variables, greedy, longest).items():
                curve.setdefault(name, []).append(value)
        return ActorCriticRun(
            keys, curves, run.phases + 1, run.environment_steps + steps + played,
            run.gradients + gradients,
        )  # fmt: skip

    def conclude(
        self, run: ActorCriticRun, rewards: Sequence[Expression], number: int, key: int
    ) -> tuple[ActorCriticRun, list[Training]]:
        """Return the trainings, charged for their evaluation, and what they leave behind."""
        learners = self._learners(run, rewards)
        episodes, played = self._play(learners, self.evaluation_episodes, fold(key, "evaluation"))
        trainings = concluded(
            rewards, run.curves, episodes, self.inner_seeds, self.recorded, number
        )
        return run._replace(environment_steps=run.environment_steps + played), trainings

    def train(
        self, rewards: Sequence[Expression], phases: int, number: int, key: int
    ) -> tuple[ActorCriticRun, list[Training]]:
        """Return whole trainings from scratch."""
        run = self.begin(len(rewards), fold(key, "learners"))
        for phase in range(phases):
            run = self.learn(run, rewards, fold(key, phase))
        return self.conclude(run, rewards, number, key)

    def _learners(self, run: ActorCriticRun, rewards: Sequence[Expression]) -> list[Any]:
        """Return the learners of a run, in memory or trained again as they were."""
        if self._live is not None and self._live[0] == run.keys:
            return self._live[1]
        if run.phases:
            logger.warning(
                "%s is in no checkpoint: its training under this reward starts again (%d phases).",
                self.algorithm, run.phases,
            )  # fmt: skip
        seeds = range(self.inner_seeds)
        learners = [
            self._learner(reward, fold(run.keys[0], place, seed))
            for place, reward in enumerate(rewards)
            for seed in seeds
        ]
        for key in run.keys[1:]:
            self._phase(learners, key)
        return learners

    def _learner(self, reward: Expression | None, key: int) -> Any:
        """Return a new learner of one reward."""
        try:
            import stable_baselines3
        except ImportError as error:
            raise ValueError(
                "Stable-Baselines3 is missing; run `pip install metaopt[actor-critic]`."
            ) from error
        kind = getattr(stable_baselines3, self.algorithm, None)
        if not isinstance(kind, type) or not hasattr(kind, "learn"):
            raise ValueError(
                f"ActorCritic needs algorithm to be a class of Stable-Baselines3, such as SAC, TD3 "
                f"or PPO; got {self.algorithm!r}."
            )
        from metaopt.problems.reward_design.designed_vector import designed_vector

        worlds = designed_vector(self.environment, self.environments, self.variables, reward)
        with _seeded(key) as seed:
            try:
                return kind("MlpPolicy", worlds, seed=seed, device=self.device, **self.options)
            except (AssertionError, TypeError, ValueError) as error:
                raise ValueError(
                    f"Stable-Baselines3's {self.algorithm} refuses {self.environment.id} or the "
                    f"options {self.options}: {error}"
                ) from error

    def _phase(self, learners: Sequence[Any], key: int) -> tuple[int, int]:
        """Train all learners for a phase; return their steps and updates in it."""
        steps = gradients = 0
        for place, learner in enumerate(learners):
            before = learner.num_timesteps, learner._n_updates
            # The library draws from the process's generators: each learner has a seed of its own.
            with _seeded(fold(key, place)):
                learner.learn(self.phase, reset_num_timesteps=False)
            steps += learner.num_timesteps - before[0]
            gradients += learner._n_updates - before[1]
        return steps, gradients

    def _play(
        self, learners: Sequence[Any], episodes: int, key: int
    ) -> tuple[list[Trajectories], int]:
        """Return greedy episodes of each learner, by reward, and their steps."""

        def policy(observation: Tensor) -> Tensor:
            pairs = zip(learners, observation.float().numpy(), strict=True)
            actions = [learner.predict(row, deterministic=True)[0] for learner, row in pairs]
            return torch.as_tensor(np.stack(actions))

        shape = (len(learners), episodes)
        recorder = Recorder(shape, self.environment, self.success)
        _, lengths = play(self.environment, policy, shape, generator(key), watch=recorder)
        played, count = recorder.trajectories(lengths), self.inner_seeds * episodes
        blocks = torch.arange(len(learners) * episodes).split(count)
        return [played.select(block) for block in blocks], int(lengths.sum())


@contextlib.contextmanager
def _seeded(key: int) -> Iterator[int]:
    """Seed the process's generators within, by 32 bits of a key, and restore them afterwards."""
    seed, numbers, others = key % 2**32, np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield seed
        finally:
            np.random.set_state(numbers)
            random.setstate(others)
