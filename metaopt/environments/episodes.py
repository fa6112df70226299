"""What an environment is here: a batch of episodes of any shape, advanced by one step at a time."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, NamedTuple, TypeVar, final

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.ranges import check_ranges

Self = TypeVar("Self", bound="Physics")


@tree.tagged("episodes")
class Episodes(NamedTuple):
    """Episodes under way, in an arrangement of any shape (*shape), such as (runs, environments).

    Args:
        state: what the physics evolves, (*shape, s).
        observation: what an agent sees of it, (*shape, d).
        first: the observation that each episode started with, (*shape, d).
        age: steps taken in the episode, (*shape) integers.
        total: sum of its rewards so far, (*shape).
    """

    state: Tensor
    observation: Tensor
    first: Tensor
    age: Tensor
    total: Tensor


class Transition(NamedTuple):
    """One step of each episode.

    Args:
        observation, next_observation: before and after the step, (*shape, d); after a last step
            the next one is what the episode ended with, not the start of another.
        reward: (*shape).
        terminated: the task ended here, (*shape) booleans: the value of what follows is 0.
        truncated: the time limit ended the episode, (*shape) booleans; nothing is known of the
            value of what would have followed.
        valid: (*shape) booleans; false where no step was taken (a reset took its place).
        total, age: return and length of the episode, this step included, (*shape).
        first: the observation it started with, (*shape, d).
    """

    observation: Tensor
    next_observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    total: Tensor
    age: Tensor
    first: Tensor


@dataclass(frozen=True, kw_only=True)
class Physics(ABC):
    """A task whose physics are functions of tensors; every number in it is a parameter.

    Args:
        time_limit: most steps of an episode, >= 1.
        timeout_is_terminal: report the time limit as `terminated`, as the library of the paper did
            (ReinforcementLearning.jl, 2022): neither a value function nor a model can then explain
            these ends by what is observed.
        variants: parameters to change, by the name of the variant.

    Attributes:
        observation_size, actions: sizes d of an observation and of the set of actions.
        scale: typical magnitude of each observation, d numbers > 0.
        resumable: whether `Episodes` hold all there is, so that a copy continues alike; where
            not, new episodes begin with each phase.
        signed: names of the parameters that may be <= 0.
        success: how an episode succeeds: the task ends ("terminated"), or it lasts until the time
            limit ("truncated").
    """

    observation_size: ClassVar[int]
    actions: ClassVar[int]
    scale: ClassVar[tuple[float, ...]]
    resumable: ClassVar[bool] = True
    signed: ClassVar[tuple[str, ...]] = ()
    success: ClassVar[str] = "terminated"

    time_limit: int = 500
    timeout_is_terminal: bool = False
    variants: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [f.name for f in dataclasses.fields(self) if f.type in ("float", float)]
        for name in numbers:
            if not _is_finite(value := getattr(self, name)):
                raise ValueError(
                    f"{type(self).__name__} needs {name} to be a finite number; got {value!r}."
                )
        positive = [name for name in numbers if name not in self.signed]
        check_ranges(self, "time_limit >= 1", *(f"{name} > 0" for name in positive))
        for name in self.variants:
            self.variant(name)

    @property
    def worst(self) -> float:
        """Lowest return of an episode."""
        return -float(self.time_limit)

    @abstractmethod
    def start(self, shape: Sequence[int], draw: Generator, dtype: torch.dtype) -> Tensor:
        """Return states in which episodes start, (*shape, s)."""

    def observe(self, state: Tensor) -> Tensor:
        """Return what an agent sees, (..., d): by default the state itself."""
        return state

    @abstractmethod
    def advance(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return state (..., s), reward (...) and termination (...) after `action` (...)."""

    def timeout_reward(self, reward: Tensor) -> Tensor:
        """Return the reward of a step that meets the time limit instead of `reward`."""
        return reward

    @final
    def variant(self: Self, name: str) -> Self:
        """Return the same task with the parameters of a variant.

        Raises:
            ValueError: there is no such variant, it changes what is no parameter, or it gives a
                parameter a value that it cannot have.
        """
        if name not in self.variants:
            legal = ", ".join(self.variants) or "none"
            raise ValueError(
                f"{type(self).__name__} has no variant {name!r}; its variants are {legal}."
            )
        changes = self.variants[name]
        if not isinstance(changes, Mapping):
            raise ValueError(
                f"{type(self).__name__} needs variants that map parameters to numbers; its variant "
                f"{name!r} is {changes!r}. Use {{}} to change nothing."
            )
        names = [f.name for f in dataclasses.fields(self) if f.name != "variants"]
        unknown = [change for change in changes if change not in names]
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no parameters {unknown}, which its variant {name!r} "
                f"changes; it has {', '.join(names)}."
            )
        settings: dict[str, Any] = {**changes, "variants": {}}
        try:
            return dataclasses.replace(self, **settings)
        except ValueError as error:
            raise ValueError(f"{error} It is the variant {name!r} that says so.") from error

    @final
    def begin(self, shape: Sequence[int], draw: Generator, dtype: torch.dtype) -> Episodes:
        """Return new episodes on the device of `draw`."""
        state = self.start(shape, draw, dtype)
        observation = self.observe(state)
        total = torch.zeros(*shape, dtype=dtype, device=state.device)
        return Episodes(state, observation, observation, torch.zeros_like(total).long(), total)

    @final
    def step(
        self, episodes: Episodes, action: Tensor, draw: Generator
    ) -> tuple[Episodes, Transition]:
        """Take one step, with a new episode in the place of each that ended."""
        state, reward, terminated = self.advance(episodes.state, action)
        age = episodes.age + 1
        late = (age >= self.time_limit) & ~terminated
        reward = torch.where(late, self.timeout_reward(reward), reward)
        total = episodes.total + reward
        observation = self.observe(state)
        nowhere = torch.zeros_like(late)
        ends = (terminated | late, nowhere) if self.timeout_is_terminal else (terminated, late)
        moved = Transition(
            episodes.observation, observation, reward, *ends, ~nowhere, total, age, episodes.first
        )
        over = terminated | late
        fresh = self.start(over.shape, draw, state.dtype)
        wide = over.unsqueeze(-1)
        start = self.observe(fresh)
        after = Episodes(
            torch.where(wide, fresh, state),
            torch.where(wide, start, observation),
            torch.where(wide, start, episodes.first),
            age.masked_fill(over, 0),
            total.masked_fill(over, 0.0),
        )
        return after, moved


def uniform(
    low: float, high: float, shape: Sequence[int], draw: Generator, dtype: torch.dtype
) -> Tensor:
    """Return uniform draws from [low, high) on the device of `draw`."""
    numbers = torch.rand(*shape, generator=draw, dtype=dtype, device=draw.device)
    return numbers * (high - low) + low


def _is_finite(value: Any) -> bool:
    """Return whether a value is a finite number; a truth value is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
