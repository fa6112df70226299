"""What a policy observes of R inner runs, each a decision process, and what all policies share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback

ACTING = "Use problem=rollout_length, or optimizer=random, search or schedule for this problem."


PER_RUN = ("length", "reward", "score")


class Observation(NamedTuple):
    """Features of R inner runs after an outer step; a problem gives them as a dict.

    Outer step 0 of an episode decides nothing; its observation and each later one but the last
    comes before a decision, so an episode of T decisions has T + 1 outer steps.

    Args:
        state: features of each run, [R, F].
        length: the length each run used, long [R].
        reward: what each run gained since the last observation, [R]; higher is better.
        score: how good each run is by now, [R]; at `done` its final score. Higher is better.
        step: index of this outer step in the episode, 0..T; the next decision has this index.
        steps: number T of decisions in an episode.
        done: this was the last outer step of the episode.
        test: the episode measures; an optimizer neither explores nor learns.
    """

    state: Tensor
    length: Tensor
    reward: Tensor
    score: Tensor
    step: int
    steps: int
    done: bool
    test: bool


class Policy(ABC):
    """An outer optimizer that decides by what it observes of each run.

    The first outer step of an episode decides nothing and takes the problem's first lengths.
    """

    _observed: Observation | None = None
    _outer: Tensor | None = None

    def init(self, outer: Any) -> None:
        """Copy the first lengths, with which every episode starts.

        Raises:
            TypeError: the outer variable is not one whole number per run.
        """
        self._initial = lengths_of(outer, type(self).__name__)
        self._outer, self._observed = self._initial.clone(), None

    def ask(self, key: int) -> Tensor:
        """Return the lengths of the next outer step, long [R]."""
        if self._observed is None or self._observed.done:
            lengths = self._initial.clone()
        else:
            lengths = self._decide(self._observed, key).to(self._initial)
        self._outer = lengths
        return lengths

    @abstractmethod
    def _decide(self, observed: Observation, key: int) -> Tensor:
        """Return the next lengths, [R]."""

    def tell(self, feedback: Feedback) -> None:
        """Observe what the next decision is about.

        Raises:
            TypeError, ValueError: the observation is not one; see `observe`.
        """
        self._observed = observe(feedback, len(self._initial), type(self).__name__)

    @property
    @final
    def solution(self) -> Any:
        """The lengths last asked for."""
        return self._outer

    def state_dict(self) -> dict[str, Any]:
        """Return the last observation and the lengths last asked for."""
        observed = None if self._observed is None else self._observed._asdict()
        return {"observed": observed, "outer": self._outer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        state = tree.clone(state)
        self._observed = None if state["observed"] is None else Observation(**state["observed"])
        self._outer = state["outer"]


def lengths_of(outer: Any, owner: str) -> Tensor:
    """Return a copy of an outer variable that holds one whole number per run, long [R].

    Raises:
        TypeError: it is something else; `owner` is who asked.
    """
    if isinstance(outer, Tensor) and outer.dtype == torch.long and outer.ndim == 1:
        return outer.clone()
    what = type(outer).__name__
    if isinstance(outer, Tensor):
        what = f"tensor of {outer.dtype} and shape {list(outer.shape)}"
    raise TypeError(
        f"{owner} needs a problem that acts, whose outer variable is one whole number per run "
        f"(torch.long, shape [R]); this one's is a {what}. {ACTING}"
    )


def observe(feedback: Feedback, runs: int, owner: str) -> Observation:
    """Return a copy of the feedback's observation, its tensors on the CPU.

    Raises:
        TypeError: the feedback has no observation, or one without the keys of `Observation`.
        ValueError: the tensors are not of `runs` runs, or the features are not finite.
    """
    given = feedback.observation
    names = list(given) if isinstance(given, Mapping) else []
    missing = [key for key in Observation._fields if key not in names]
    if missing:
        raise TypeError(
            f"{owner} needs a problem that acts, whose observation has {', '.join(missing)}; this "
            f"problem gives {names or 'none'}. {ACTING}"
        )
    state = given["state"].detach().to("cpu", torch.float32, copy=True)
    per_run = {k: given[k].detach().to("cpu", copy=True) for k in PER_RUN}
    shapes = {"state": list(state.shape), **{k: list(v.shape) for k, v in per_run.items()}}
    if state.ndim != 2 or any(shape[:1] != [runs] for shape in shapes.values()):
        raise ValueError(
            f"{owner} proposed lengths of {runs} runs and observes tensors of shapes {shapes}; "
            f"legal are state [{runs}, F] and [{runs}] for the others."
        )
    if not bool(torch.isfinite(state).all()):
        raise ValueError(
            f"{owner} observes features that are not finite at step {given['step']} of an episode; "
            "let the problem clip them."
        )
    rest = {k: given[k] for k in ("step", "steps", "done", "test")}
    return Observation(state=state, **per_run, **rest)
