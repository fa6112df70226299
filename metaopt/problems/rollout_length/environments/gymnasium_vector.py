"""Any environment of gymnasium in the place of physics on tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, final

import torch
from torch import Generator, Tensor

from metaopt.problems.rollout_length.environments.episodes import Episodes, Transition


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

    Raises:
        ValueError: gymnasium is missing or has no such environment, or the environment has no time
            limit, observations that are not flat, actions that are not discrete, or resets in the
            step that ends an episode.
    """

    resumable = False

    def __init__(
        self,
        id: str,
        time_limit: int | None = None,
        worst: float | None = None,
        scale: Sequence[float] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.id, self.arguments = id, dict(arguments or {})
        if time_limit is not None:
            self.arguments["max_episode_steps"] = time_limit
        self._vectors: dict[int, Any] = {}
        vector = self._vector(1)
        limit = _most_steps(vector)
        if limit is None:
            raise ValueError(
                f"{id} has no time limit of its own; set problem.environment.time_limit, the most "
                "steps of an episode."
            )
        space, actions = vector.single_observation_space, vector.single_action_space
        if len(space.shape) != 1 or getattr(actions, "n", None) is None:
            raise ValueError(
                f"GymnasiumVector needs flat observations and discrete actions; {id} has {space} "
                f"and {actions}."
            )
        mode = getattr((vector.metadata or {}).get("autoreset_mode"), "name", "NEXT_STEP")
        if mode != "NEXT_STEP":
            raise ValueError(
                f"GymnasiumVector needs an environment that resets in the step after an episode's "
                f"last; {id} has autoreset_mode={mode}. Make it with NEXT_STEP."
            )
        self.time_limit = limit
        self.observation_size, self.actions = int(space.shape[0]), int(actions.n)
        if worst is None or scale is None:
            lowest, magnitude = _measured(self)
            worst, scale = (lowest if worst is None else worst), (scale or magnitude)
        self.worst, self.scale = float(worst), tuple(scale)
        if len(self.scale) != self.observation_size:
            raise ValueError(
                f"GymnasiumVector needs {self.observation_size} numbers as scale; got {scale}."
            )

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
        vector = self._vector(action.numel())
        now, reward, *ends, _ = vector.step(action.flatten().cpu().numpy())
        like, shape = episodes.observation, action.shape

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
                f"gymnasium cannot make problem.environment.id={self.id}: {error} Ids like it are "
                f"{legal}; `module:Name-v0` imports a module that registers its own, from the "
                "working folder with --config-dir or PYTHONPATH=."
            ) from error
        return self._vectors[count]


def _measured(environment: GymnasiumVector, episodes: int = 16) -> tuple[float, tuple[float, ...]]:
    """Return lowest return and root mean square of each observation under random actions."""
    draw = torch.Generator().manual_seed(0)
    current = environment.begin((episodes,), draw, torch.float64)
    lowest, squares = math.inf, []
    for _ in range(environment.time_limit):
        action = torch.randint(environment.actions, (episodes,), generator=draw)
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
