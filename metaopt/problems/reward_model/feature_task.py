"""Preferences on frozen features: batched reward models of R runs, or R ensembles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.data.features import PreferenceFeatures
from metaopt.problems.reward_model.data.policy import Reward
from metaopt.problems.reward_model.denoising import Labels
from metaopt.problems.reward_model.model.contrastive import Contrastive
from metaopt.problems.reward_model.model.training import bradley_terry
from metaopt.problems.reward_model.report import table
from metaopt.problems.reward_model.task import PreferenceTask, reward_figures
from metaopt.problems.reward_model.world_task import PreferenceWorlds

AGGREGATES = ("mean", "worst", "lower")
"""How an ensemble's rewards become one; see `combine`."""


class FeaturePreferences(PreferenceTask):
    """Pairs of features, and R small reward models on them, or R ensembles of M.

    A member of an ensemble is model r M + m. Members differ in their initial weights and in the
    order of the pairs; the first one sees the pairs in the order that a single model would see.
    It is a task of `MetaRewardModel`, and of `DomainReweighting` with one domain and a table of
    weights by row, which learns what each pair counts from the trusted ones.

    Args:
        data: the pairs; or worlds, which also judge rewards by the policies that they lead to.
        model: makes the architecture from the number of features.
        labels: what is done to the labels first; `None` for nothing.
        members: M >= 1.
        aggregate: how an ensemble's members make one reward: mean; worst, the lowest; lower, the
            mean minus a standard deviation. For the last two a member's mean reward over the
            training answers is taken off first.
        auxiliary: makes a contrastive loss of the architecture and the generators of its views,
            which is added to each labelled pair's loss where models are trained; Bradley and
            Terry's is then the mean over the pair and its views. Weights of pairs count for both.
            `None` for none.

    Attributes:
        rows: number of pairs that a run learns from.
        prompts: number of prompts with responses.
        domains, domain, meta_rows, quality: what `DomainReweighting` reads.

    References: Coste et al., Reward model ensembles help mitigate overoptimization, ICLR 2024;
    Wang et al., Secrets of RLHF in Large Language Models Part II, 2024, section 3 (contrastive).
    """

    domains: tuple[str, ...] = ("pairs",)
    quality: Tensor | None = None

    def __init__(
        self,
        data: PreferenceFeatures | PreferenceWorlds,
        model: Callable[..., FeatureReward],
        labels: Labels | None = None,
        members: int = 1,
        aggregate: str = "mean",
        auxiliary: Callable[..., Contrastive] | None = None,
    ) -> None:
        self.worlds = data if isinstance(data, PreferenceWorlds) else None
        features = data.features if isinstance(data, PreferenceWorlds) else data
        self.data, self.members, self.aggregate = features, members, aggregate
        self.resplit = features.resplit
        check_ranges(self, "members >= 1")
        check_choices(self, aggregate=AGGREGATES)
        self.model = model(inputs=features.training.chosen.shape[-1])
        # Views are drawn as dropout is, so that two evaluations under one key see the same ones.
        self.auxiliary = auxiliary and auxiliary(self.model, [torch.default_generator])
        draws = [_draw(features.seed, "labels", run) for run in range(features.runs)]
        self.training = (labels or Labels())(features, self.model, draws)
        self._both = torch.stack((features.training.chosen, features.training.rejected), 2)
        # Which run each model belongs to; (R M, 1), to index rows (R M, B) of its run's data.
        self._run = torch.arange(features.runs * members)[:, None] // members
        self._order = self._orders()
        self.rows, self.prompts = self._order.shape[1], features.responses.shape[1]
        self.domain, self.meta_rows = torch.zeros(self.rows, dtype=torch.long), features.trusted

    def init(self, generator: Generator) -> tuple[Tree, Tree]:
        """Return parameters with a leading axis R M, and no buffers; see `FeatureReward.init`.

        The auxiliary loss's own, which SwAV has, are among them.
        """
        # One draw, folded with run and member, so that no model depends on how many there are.
        key = int(torch.randint(2**62, (), generator=generator))
        each = [(r, m) for r in range(self.data.runs) for m in range(self.members)]
        params = self.model.init([_draw(key, r, m) for r, m in each])
        if self.auxiliary is not None:
            params = self.auxiliary.init(params, [_draw(key, "auxiliary", r, m) for r, m in each])
        return params, {}

    def row_losses(self, tensors: Mapping[str, Tensor], rows: Tensor, train: bool = True) -> Tensor:
        """Return the loss of each pair against its target, (R M, B)."""
        pairs = self._order[:, rows]
        targets, x = self.training.targets.at(self._run, pairs), self._both[self._run, pairs]

        def losses(x: Tensor) -> Tensor:
            return targets.losses(*self.model.rewards(tensors, x, _dropout(train)).unbind(-1))

        if self.auxiliary is None or not train:  # an evaluation is of the pairs alone
            return losses(x)
        return self.auxiliary.add_to(losses, tensors, x)

    def meta_losses(
        self, tensors: Mapping[str, Tensor], rows: Tensor, train: bool = True
    ) -> Tensor:
        """Return the loss of each trusted pair against the right label, (R M, B)."""
        wrong = self.data.training.wrong[:, rows].repeat_interleave(self.members, 0)
        x = self._both[:, rows].repeat_interleave(self.members, 0)
        first, second = self.model.rewards(tensors, x, _dropout(train)).unbind(-1)
        better = torch.where(wrong, second, first)
        return bradley_terry(better, torch.where(wrong, first, second))

    def responses(self, tensors: Mapping[str, Tensor], prompts: Tensor) -> Tensor:
        """Return the rewards of the responses to each prompt, (R M, B, k)."""
        x = self.data.responses[:, prompts]
        return self.model.rewards(tensors, x.repeat_interleave(self.members, 0))

    def reward(self, tensors: Mapping[str, Tensor]) -> Reward:
        """Return the reward of each run's model, or ensemble, as a function (R, B, d) -> (R, B)."""

        centre: Tensor | float = 0.0
        if self.aggregate != "mean":
            # Bradley and Terry's loss leaves a constant free in each member; it would decide which
            # one is the lowest. A policy's gradient does not go through it.
            with torch.no_grad():
                every = self._both.flatten(1, 2).repeat_interleave(self.members, 0)
                centre = self.model.rewards(tensors, every).mean(-1, keepdim=True)

        def rewards(x: Tensor) -> Tensor:
            each = self.model.rewards(tensors, x.repeat_interleave(self.members, 0)) - centre
            return combine(each.view(len(x), self.members, *each.shape[1:]), self.aggregate)

        return rewards

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return the gradients of the labels' strengths, and those of members but the first."""
        others = (self.members - 1) * spent.get("gradients", 0)
        return {"gradients": self.training.gradients + others}

    @torch.no_grad()
    def metrics(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return accuracy, loss and mean |margin| by test, J, what worlds measure, and facts."""
        figures = self._figures(self.reward(tensors), _concluded(tensors))
        return figures | {f"labels/{name}": value for name, value in self.training.facts.items()}

    def _figures(self, reward: Reward, conclusion: Tree) -> dict[str, Tensor]:
        x = self.data.responses
        figures = reward_figures(
            {k: (reward(p.chosen), reward(p.rejected)) for k, p in self.data.tests.items()},
            reward(x.flatten(1, 2)).view(x.shape[:-1]),
        )
        if self.worlds is not None and conclusion:
            figures |= self.worlds.metrics(conclusion)
        return figures

    def conclude(self, tensors: Mapping[str, Tensor], key: int) -> Tree:
        """Return what worlds measure, on the same responses and noise for every reward."""
        if self.worlds is None:
            return {}
        conclusion = self.worlds.conclude(self.reward(tensors))
        return {f"{JUDGED}{name}": value for name, value in conclusion.items()}

    def draw(self, conclusion: Mapping[str, Tensor], folder: Path) -> list[Path]:
        """Write the figures of worlds."""
        measured = _concluded(conclusion)
        return self.worlds.draw(measured, folder) if self.worlds and measured else []

    @torch.no_grad()
    def deliver(self, tensors: Mapping[str, Tensor], folder: Path) -> str:
        """Write the parameters as reward_models.safetensors; return a table of the figures.

        Next to the baseline of worlds: means over runs, and on how many runs the figure is higher.
        """
        params = {k: v.contiguous() for k, v in tensors.items() if not k.startswith(JUDGED)}
        save_file(params, folder / "reward_models.safetensors")
        baseline: Mapping[str, Tensor] = {}
        if self.worlds is not None:
            baseline = self._figures(self.worlds.baseline, self.worlds.baseline_conclusion)
        return table({k: (v, baseline.get(k)) for k, v in self.metrics(tensors).items()})

    def _orders(self) -> Tensor:
        """Return which pair lies at which row for each model, (R M, n')."""
        orders = []
        for run, pairs in enumerate(self.training.rows):
            for member in range(self.members):
                draw = _draw(self.data.seed, "order", run, member)
                # The first member keeps the order, so that it is the single model's.
                mixed = torch.randperm(len(pairs), generator=draw) if member else slice(None)
                orders.append(pairs[mixed])
        return torch.stack(orders)


def combine(rewards: Tensor, how: str = "mean") -> Tensor:
    """Return one reward of M, (R, ...).

    mean: their mean. worst: the smallest. lower: mean - std, with the population standard
    deviation. The last two shun what the members disagree about. Bradley and Terry's loss leaves a
    constant free in each member, so centre them first; the mean needs no centring.

    Args:
        rewards: (R, M, ...).
        how: one of `AGGREGATES`.

    References: Coste et al., Reward model ensembles help mitigate overoptimization, ICLR 2024.
    """
    if how == "worst":
        return rewards.amin(1)
    mean = rewards.mean(1)
    return mean if how == "mean" else mean - rewards.std(1, correction=0)


JUDGED = "judged."
"""Before the names of what worlds conclude, which travels among the tensors of the models."""


def _concluded(tensors: Mapping[str, Tensor]) -> Tree:
    return {k.removeprefix(JUDGED): v for k, v in tensors.items() if k.startswith(JUDGED)}


def _draw(key: int, *names: int | str) -> Generator:
    return generator(fold(key, *names))


def _dropout(train: bool) -> Generator | None:
    return torch.default_generator if train else None
