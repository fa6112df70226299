"""Worlds with a known reward: pairs, shifted pairs and responses, and gold reward at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.data.features import PreferenceFeatures
from metaopt.problems.reward_model.data.policy import Policy, Reward, at_kl, kl, optimise, sample
from metaopt.problems.reward_model.data.policy import draw as normal
from metaopt.problems.reward_model.data.world import PROMPT, Pairs, PreferenceWorld
from metaopt.problems.reward_model.model.training import Recipe, batches, every, fit
from metaopt.problems.reward_model.report import draw_frontier

Responses = Literal["shifted", "sft", "noise"]


class PreferenceWorlds:
    """R worlds, pairs with wrong labels in them, and what a first reward model's policy does there.

    A vanilla reward model is trained on the noisy pairs, and a policy on that model. Pairs and
    responses of this policy are the shifted ones. Since a model is at an advantage on pairs of its
    own policy, it is a second vanilla model that others are compared with. All of it is a function
    of the seed and of the settings here, so that every method of a table sees the same.

    Args:
        model: makes the architecture of the first reward model from the number of features.
        runs: number R of worlds, >= 1; world i is a function of (seed, i).
        pairs: labelled pairs n of a run.
        noise: share of wrong labels, in [0, 1].
        trusted: share of the pairs whose right labels are known, in (0, 1].
        test_pairs: pairs of each test: held_out (the SFT policy's answers) and shifted.
        prompts, responses: numbers of prompts, and of unlabelled responses to each.
        source: whose responses: shifted, sft, or noise (standard normal numbers: a control).
        world: further settings of `PreferenceWorld`, or `None`.
        beta: KL coefficient of the policy on the first reward model, > 0.
        betas: coefficients of the policies that judge a reward model, each > 0.
        levels: nats at which gold rewards are reported.
        candidates: n of best-of-n.
        steps: updates of a policy.
        recipe: how the first reward model is trained.
        seed: of everything.

    Attributes:
        features: the data.
        policy: the shifted policy, (R, ...).

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        model: Callable[..., FeatureReward],
        runs: int = 8,
        pairs: int = 2048,
        noise: float = 0.3,
        trusted: float = 0.05,
        test_pairs: int = 2048,
        prompts: int = 512,
        responses: int = 5,
        source: Responses = "shifted",
        world: Mapping[str, float] | None = None,
        beta: float = 0.1,
        betas: Sequence[float] = (0.03, 0.1, 0.3, 1.0),
        levels: Sequence[float] = (2.0, 5.0),
        candidates: int = 16,
        steps: int = 100,
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        self.runs, self.trusted, self.source = runs, trusted, source
        check_ranges(self, "runs >= 1", "0 < trusted <= 1")
        check_choices(self, source=get_args(Responses))
        if beta not in betas:
            raise ValueError(f"betas must hold beta={beta}; got {list(betas)}.")
        self.seed, self.steps, self.beta = seed, steps, beta
        self.betas, self.levels, self.candidates = tuple(betas), tuple(levels), candidates
        self.world = PreferenceWorld(self._draws("world"), **(world or {}))
        training = self.world.pairs(self._draws("pairs"), pairs, noise)
        self.model = model(inputs=self.world.width)
        # Draws by purpose: the two models share neither initial weights nor the order of pairs.
        self._first = self._vanilla("first", training, recipe or Recipe())
        self._second = self._vanilla("second", training, recipe or Recipe())
        self.policy = self._policies(partial(self.model.rewards, self._first), (beta,)).at(0)
        tests = {
            "held_out": self.world.pairs(self._draws("held out"), test_pairs),
            "shifted": self.world.pairs(self._draws("shifted"), test_pairs, policy=self.policy),
        }
        self.features = PreferenceFeatures(
            training,
            max(1, round(trusted * pairs)),
            self._responses(prompts, responses),
            tests,
            seed,
        )

    def conclude(self, reward: Reward) -> Tree:
        """Return KL and gold reward along a sweep of KL coefficients, and of the best of n.

        Returns:
            kl, gold: (R, S + 1), of the SFT policy and of the S policies, in the order of `betas`.
            best_of, best_of_shifted: (R,), among responses of the SFT and of the shifted policy.
        """
        swept = self._policies(reward, self.betas)
        sft = Policy(*(part[:, None] for part in self.world.sft))
        zero = swept.offset.new_zeros(self.runs, 1)
        # Best-of-n draws from one state at each call, so that all rewards choose among the same.
        draws, count = self._draws("best of"), self.candidates
        return {
            "kl": torch.cat((zero, kl(swept, sft)), -1),
            "gold": torch.cat((zero, self.world.expected_gold(swept)), -1),
            "best_of": self.world.best_of(reward, draws, count),
            "best_of_shifted": self.world.best_of(reward, draws, count, policy=self.policy),
        }

    def metrics(self, conclusion: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return gold rewards at each level of KL, at the fixed coefficient, and of best-of-n.

        A level that a run's policies do not reach is NaN there. `gold_fixed` and `kl_fixed` are
        those of the policy at the coefficient `beta`: rewards of another spread are pushed to
        another KL there, so that gold rewards at one coefficient do not compare reward models.
        """
        at = 1 + self.betas.index(self.beta)  # behind the SFT policy
        divergence, gold = conclusion["kl"], conclusion["gold"]
        levels = {f"gold_at_kl_{nats:g}": at_kl(divergence, gold, nats) for nats in self.levels}
        best = {f"best_of_{self.candidates}": conclusion["best_of"]}
        best[f"best_of_{self.candidates}_shifted"] = conclusion["best_of_shifted"]
        return levels | best | {"gold_fixed": gold[:, at], "kl_fixed": divergence[:, at]}

    def baseline(self, x: Tensor) -> Tensor:
        """Return the second vanilla model's rewards (R, B) of features (R, B, d)."""
        return self.model.rewards(self._second, x)

    def draw(self, conclusion: Mapping[str, Tensor], folder: Path) -> list[Path]:
        """Draw gold reward against KL, of the models and of the vanilla ones, as gold.png."""
        curves = {"this model": conclusion, "vanilla": self.baseline_conclusion}
        return [draw_frontier(curves, self.levels, folder / "gold.png")]

    @cached_property
    def baseline_conclusion(self) -> Tree:
        """What `conclude` says of the second vanilla model."""
        return self.conclude(self.baseline)

    def _vanilla(self, name: str, pairs: Pairs, recipe: Recipe) -> Tree:
        rows = batches(self._draws(f"{name} batches"), every(pairs.chosen), recipe)
        start = self.model.init(self._draws(f"{name} model"))
        return fit(self.model, start, pairs.chosen, pairs.rejected, rows, recipe)

    def _policies(self, reward: Reward, betas: Sequence[float]) -> Policy:
        return optimise(reward, self.world.sft, self._draws("policy"), betas, self.steps)

    def _responses(self, prompts: int, count: int) -> Tensor:
        draws = self._draws("responses")
        policy = self.policy if self.source == "shifted" else self.world.sft
        sampled = sample(policy, draws, prompts, count)
        if self.source != "noise":
            return sampled
        answers = normal(draws, prompts, count, sampled.shape[-1] - PROMPT)
        return torch.cat((sampled[..., :PROMPT], answers), -1)

    def _draws(self, purpose: str) -> Sequence[Generator]:
        return [generator(fold(self.seed, purpose, i)) for i in range(self.runs)]
