"""Any environment of gymnasium in the place of physics on tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, final

import torch
from torch import Generator, Tensor

from metaopt.environments.episodes import Episodes, Transition


@final
class GymnasiumVector:
    """Episodes of an environment in gymnasium's registry. Needs the extra `rl`.

    gymnasium resets an episode that ended in the *next* step, where the action is ignored: that
    step is reported with `valid` false and must not be learned from.

    The simulator's state is inside gymnasium, so episodes cannot be copied (`resumable` is false)
    and only the latest ones begun in a shape continue.

    Example:
        >>> environment = GymnasiumVector("CartPole-v1", time_limit=200)
        >>> environment.observation_size, environment.actions
        (4, 2)

    Args:
        id: such as "LunarLander-v3", or "module:Name-v0" of a module that registers its own.
        time_limit: most steps of an episode; `None` for the environment's own.
        worst: lowest return of an episode; `None` for the lowest of 16 of random actions.
        scale: typical magnitude of each observation, > 0; `None` for its root mean square in
            these episodes.
        arguments: further ones of `gymnasium.make_vec`.
        observations: a name of each observation, for those who read them; `None` for none.

    Raises:
        ValueError: gymnasium is missing or has no such environment, there are not as many names as
            observations, or the environment has no time limit, observations that are not flat,
            actions that are neither discrete nor a vector, or resets in the step that ends an
            episode.

    Attributes:
        observation_size: d.
        actions: number of discrete actions; to ask for it where they are vectors is an error.
        action_size: numbers in an action that is a vector, else 0.
    """

    resumable = False

    def __init__(
        self,
        id: str,
        time_limit: int | None = None,
        worst: float | None = None,
        scale: Sequence[float] | None = None,
        arguments: Mapping[str, Any] | None = None,
        observations: Sequence[str] | None = None,
    ) -> None:
        self.id, self.arguments = id, dict(arguments or {})
        if time_limit is not None:
            self.arguments["max_episode_steps"] = time_limit
        self._vectors: dict[int, Any] = {}
        vector = self._vector(1)
        limit = _most_steps(vector)
        if limit is None:
            raise ValueError(
                f"{id} has no time limit of its own; set it, as in time_limit=500, the most steps "
                "of an episode."
            )
        self.time_limit = limit
        self.observation_size, self.action_size = _sizes(id, vector)
        self.observations = None if observations is None else tuple(observations)
        if self.observations is not None and len(self.observations) != self.observation_size:
            raise ValueError(
                f"GymnasiumVector needs observations to name the {self.observation_size} numbers "
                f"that {id} observes; got {len(self.observations)}: {list(self.observations)}."
            )
        if worst is None or scale is None:
            lowest, magnitude = _measured(self)
            worst, scale = (lowest if worst is None else worst), (scale or magnitude)
        self.worst, self.scale = float(worst), tuple(scale)
        if len(self.scale) != self.observation_size:
            raise ValueError(
                f"GymnasiumVector needs {self.observation_size} numbers as scale; got {scale}."
            )

    @property
    def actions(self) -> int:
        """Number of discrete actions."""
        if self.action_size:
            raise ValueError(
                f"{self.id} has vectors of {self.action_size} numbers as actions, and deep "
                "Q-learning needs discrete ones; take an environment that has them, or, for reward "
                "design, model@problem.trainer=reward_design/actor_critic."
            )
        return int(self._vector(1).single_action_space.n)

    def begin(self, shape: Sequence[int], draw: Generator, dtype: torch.dtype) -> Episodes:
        """Return new episodes on the device of `draw`; those begun before in the shape are gone."""
        seed = int(torch.randint(2**31, (), generator=draw, device=draw.device))
        start, _ = self._vector(math.prod(shape)).reset(seed=seed)
        observation = torch.as_tensor(start, dtype=dtype, device=draw.device).view(*shape, -1)
        total = torch.zeros(*shape, dtype=dtype, device=draw.device)
        resetting = torch.zeros(*shape, 1, dtype=dtype, device=draw.device)
        return Episodes(resetting, observation, observation, torch.zeros_like(total).long(), total)

    def step(
        self, episodes: Episodes, action: Tensor, draw: Generator
    ) -> tuple[Episodes, Transition]:
        """Take one step; `Episodes.state` says whose next step will be a reset."""
        like, shape = episodes.observation, episodes.age.shape
        vector = self._vector(episodes.age.numel())
        rows = action.reshape(episodes.age.numel(), *action.shape[len(shape) :])
        now, reward, *ends, _ = vector.step(rows.cpu().numpy())

        def tensor(x: Any) -> Tensor:
            return torch.as_tensor(x, device=like.device).view(*shape, *x.shape[1:])

        observation = tensor(now).to(like.dtype)
        # The step that resets a finished episode ignores its action: nothing is learned from it.
        valid = episodes.state[..., 0] == 0
        terminated, truncated = (tensor(end) & valid for end in ends)
        reward = torch.where(valid, tensor(reward).to(like.dtype), 0.0)
        over = terminated | truncated
        age, total = episodes.age + valid, episodes.total + reward
        moved = Transition(
            episodes.observation, observation, reward, terminated, truncated, valid, total, age,
            episodes.first,
        )  # fmt: skip
        after = Episodes(
            over.unsqueeze(-1).to(like.dtype),
            observation,
            torch.where(valid.unsqueeze(-1), episodes.first, observation),
            age.masked_fill(over, 0),
            total.masked_fill(over, 0.0),
        )
        return after, moved

    def random_action(self, shape: Sequence[int], draw: Generator) -> Tensor:
        """Return actions drawn uniformly, (*shape) or (*shape, a); of no bounds, normal ones."""
        if not self.action_size:
            return torch.randint(self.actions, tuple(shape), generator=draw, device=draw.device)
        space = self._vector(1).single_action_space
        low, high = (torch.as_tensor(x, device=draw.device) for x in (space.low, space.high))
        size = (*shape, self.action_size)
        normal = torch.randn(size, generator=draw, dtype=low.dtype, device=draw.device)
        share = torch.rand(size, generator=draw, dtype=low.dtype, device=draw.device)
        bounded = low.isfinite() & high.isfinite()
        return torch.where(bounded, low + share * (high - low), normal.clamp(low, high))

    def _vector(self, count: int) -> Any:
        """Return the vector environment of `count` episodes, made when first asked for."""
        if count in self._vectors:
            return self._vectors[count]
        try:
            import gymnasium
        except ImportError as error:
            raise ValueError("gymnasium is missing; run `pip install metaopt[rl]`.") from error
        try:
            self._vectors[count] = gymnasium.make_vec(self.id, count, **self.arguments)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            legal = ", ".join(get_close_matches(self.id, gymnasium.registry, 3, 0.0))
            raise ValueError(
                f"gymnasium cannot make id={self.id}: {error} Ids like it are "
                f"{legal}; `module:Name-v0` imports a module that registers its own, from the "
                "working folder with --config-dir or PYTHONPATH=."
            ) from error
        return self._vectors[count]


def _sizes(id: str, vector: Any) -> tuple[int, int]:
    """Return the numbers in an observation, and in an action that is a vector, else 0.

    Raises:
        ValueError: the environments have others, or reset in the step that ends an episode.
    """
    space, actions = vector.single_observation_space, vector.single_action_space
    discrete = getattr(actions, "n", None) is not None
    if len(space.shape or ()) != 1 or not (discrete or len(actions.shape or ()) == 1):
        raise ValueError(
            f"GymnasiumVector needs flat observations and actions that are discrete or a "
            f"vector; {id} has {space} and {actions}."
        )
    mode = getattr((vector.metadata or {}).get("autoreset_mode"), "name", "NEXT_STEP")
    if mode != "NEXT_STEP":
        raise ValueError(
            f"GymnasiumVector needs an environment that resets in the step after an episode's "
            f"last; {id} has autoreset_mode={mode}. Make it with NEXT_STEP."
        )
    return int(space.shape[0]), 0 if discrete else int(actions.shape[0])


def _measured(environment: GymnasiumVector, episodes: int = 16) -> tuple[float, tuple[float, ...]]:
    """Return lowest return and root mean square of each observation under random actions."""
    draw = torch.Generator().manual_seed(0)
    current = environment.begin((episodes,), draw, torch.float64)
    lowest, squares = math.inf, []
    for _ in range(environment.time_limit):
        action = environment.random_action((episodes,), draw)
        current, moved = environment.step(current, action, draw)
        squares.append(moved.observation.square().mean(0))
        over = (moved.terminated | moved.truncated) & moved.valid
        lowest = min([lowest, *moved.total[over].tolist()])
    size = torch.stack(squares).mean(0).sqrt()
    lowest = float(current.total.min()) if lowest == math.inf else lowest
    return lowest, tuple(torch.where(size > 1e-6, size, 1.0).tolist())


def _most_steps(vector: Any) -> int | None:
    """Return the time limit that the environments say they have, or `None`."""
    within = vector.unwrapped
    if hasattr(within, "get_attr"):  # the vector's own spec does not know what `make_vec` was given
        spec = within.get_attr("spec")[0]
    else:
        spec = within if hasattr(within, "max_episode_steps") else vector.spec
    most = getattr(spec, "max_episode_steps", None)
    return None if most is None or most < 0 else int(most)
