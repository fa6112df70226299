"""A policy that is a table over all responses of a simulated world, optimised exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaopt.engine.ranges import check_ranges
from metaopt.llm import LM
from metaopt.problems.meta_policy_optimization.item_scores import read_weights
from metaopt.problems.meta_policy_optimization.policy import Reward, State, Truth
from metaopt.problems.meta_policy_optimization.rubric_world import RubricWorld


class TabularPolicy:
    """One distribution over all responses for each query, by mirror descent on the KL objective.

        maximise over pi  E_pi[r] - beta KL(pi || pi_0)
        log pi <- (1 - eta beta) log pi + eta beta log pi_0 + eta r, normalised

    Quality and KL are sums over all responses, so nothing is sampled but the rollouts that the meta
    judge reads. The fixed point is pi_0 exp(r / beta), normalised.

    Args:
        world: queries, responses and their judge.
        step_size: eta > 0, with eta beta <= 1.
        kl_coefficient: beta > 0.

    Raises:
        ValueError: an argument outside its range.

    Cost: a few passes over queries x 8,192 numbers an update.

    References: Nemirovski and Yudin, Problem Complexity and Method Efficiency in Optimization,
    1983, for mirror descent.
    """

    judged = evaluation = 0

    def __init__(
        self, world: RubricWorld, step_size: float = 0.03, kl_coefficient: float = 0.12
    ) -> None:
        self.world, self.step_size, self.kl_coefficient = world, step_size, kl_coefficient
        check_ranges(self, "step_size > 0", "kl_coefficient > 0")
        if step_size * kl_coefficient > 1:
            raise ValueError(
                f"TabularPolicy needs step_size * kl_coefficient <= 1; got {step_size} * "
                f"{kl_coefficient}."
            )
        self.queries, self.rubric = world.queries, world.rubric
        self.truth: Truth | None = world
        self._first_quality = float((world.log_prior.exp() @ world.quality).mean())
        self._points: dict[str, Tensor] = {}

    def roles(self) -> Mapping[str, LM]:
        """Return the world's simulated language models."""
        return self.world.roles()

    def check(self, roles: Mapping[str, LM]) -> None:
        """Refuse other judges: the policy is trained on all responses at once."""
        for role in ("judge", "second_judge"):
            if role in roles:
                raise ValueError(
                    "TabularPolicy is trained under the judge of its own world, on all 8,192 "
                    f"responses at once, so that problem.roles.{role} cannot be another model; "
                    "leave it out (problem.roles.meta may be one)."
                )

    def saved_judge(self) -> Mapping[str, Any]:
        """Return the arguments of the world, whose judge it is."""
        return self.world.to_dict()

    def init(self, key: int) -> State:
        """Return the first policy."""
        return {"log_probability": self.world.log_prior.clone()}

    def update(self, state: State, reward: Reward, key: int) -> State:
        """Return the policy after a step of mirror descent."""
        eta, beta = self.step_size, self.kl_coefficient
        log_pi = (1 - eta * beta) * state["log_probability"] + eta * beta * self.world.log_prior
        log_pi += eta * reward.factor * self.points(reward.rubric)
        return {"log_probability": log_pi - log_pi.logsumexp(1, keepdim=True)}

    def sample(self, state: State, count: int, key: int) -> list[tuple[int, str]]:
        """Return responses drawn from the table."""
        draw = np.random.default_rng(key)
        cumulative = state["log_probability"].exp().cumsum(1).numpy()
        drawn = []
        for query, u in zip(
            draw.integers(len(self.queries), size=count), draw.random(count), strict=True
        ):
            row = cumulative[query]
            index = int(np.searchsorted(row, u * row[-1], side="right"))
            drawn.append((int(query), self.world.response(index)))
        return drawn

    def last(self, state: State) -> Mapping[str, float]:
        """Return nothing: an update looks at no single response."""
        return {}

    def first(self, state: State) -> Mapping[str, float]:
        """Return the hack rate of the first policy."""
        return {"hack_rate": float((self.world.log_prior.exp() @ self.world.abuse_rate).mean())}

    def measure(
        self, state: State, reward: Reward, second: Reward | None = None
    ) -> dict[str, float]:
        """Return quality, hack rate, KL and the judge's score, all of them exact."""
        log_pi = state["log_probability"]
        pi = log_pi.exp()
        most = sum(map(abs, read_weights(reward.rubric).values()))
        return {
            "quality": float((pi @ self.world.quality).mean()) - self._first_quality,
            "hack_rate": float((pi @ self.world.abuse_rate).mean()),
            "kl": float((pi * (log_pi - self.world.log_prior)).sum(1).mean()),
            "score": float((pi @ self.points(reward.rubric)).mean()) / most,
        }

    def progress(self, state: State, reward: Reward) -> tuple[float, float]:
        """Return quality and score, as `measure` has them."""
        measured = self.measure(state, reward)
        return measured["quality"], measured["score"]

    def points(self, rubric: str) -> Tensor:
        """Return the judge's points of every response, (8192,)."""
        if rubric not in self._points:
            if len(self._points) > 1:  # the rubric in force, and one that is looked at beside it
                del self._points[next(iter(self._points))]
            self._points[rubric] = torch.from_numpy(self.world.points(rubric))
        return self._points[rubric]
