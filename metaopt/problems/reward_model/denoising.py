"""What a reward model is trained towards: the labels as they are, denoised, or the right ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.metrics.binary import auroc
from metaopt.nn.stacked_features import FeatureReward
from metaopt.problems.reward_model.data.features import PreferenceFeatures
from metaopt.problems.reward_model.data.world import Pairs
from metaopt.problems.reward_model.model import strength
from metaopt.problems.reward_model.model.training import Recipe, Targets


class TrainingTargets(NamedTuple):
    """What R runs are trained on: some of their n pairs, and targets.

    Args:
        targets: of all pairs, (R, n) each.
        rows: indices of the pairs to learn from, (R, n') with n' <= n.
        facts: what is known of the labels, (R,) by name.
        gradients: what each run has paid for it, in gradients of one model's loss.
    """

    targets: Targets
    rows: Tensor
    facts: dict[str, Tensor]
    gradients: int = 0


class Labels:
    """The labels as they are; subclasses turn them into other training targets."""

    def __call__(
        self, data: PreferenceFeatures, model: FeatureReward, generators: Sequence[Generator]
    ) -> TrainingTargets:
        """Return the targets; generator i draws all that is random of run i."""
        return _training_targets(data.training, _unchanged(data.training))


@dataclass(frozen=True)
class OracleLabels(Labels):
    """The right labels, of all pairs (an oracle) or of those that are trusted.

    Args:
        which: all, or trusted.
    """

    which: str = "all"

    def __post_init__(self) -> None:
        check_choices(self, which=("all", "trusted"))

    def __call__(
        self, data: PreferenceFeatures, model: FeatureReward, generators: Sequence[Generator]
    ) -> TrainingTargets:
        """Return all pairs, the wrong ones among those that are known exchanged."""
        pairs = data.training
        swap = pairs.wrong.clone()
        if self.which == "trusted":
            swap[:, data.trusted :] = False
        return _training_targets(pairs, _unchanged(pairs)._replace(swap=swap))


@dataclass(frozen=True, kw_only=True)
class StrengthLabels(Labels):
    """What labels that depend on preference strengths share.

    Args:
        models, folds: see `metaopt.problems.reward_model.model.strength.strengths`.
        recipe: how the models of the strength are trained.
    """

    models: int = 5
    folds: int = 5
    recipe: Recipe = field(default_factory=Recipe)

    def strengths(
        self, pairs: Pairs, model: FeatureReward, generators: Sequence[Generator]
    ) -> tuple[strength.Strength, dict[str, Tensor]]:
        """Return the strengths, and how well they tell wrong labels."""
        strengths = strength.strengths(
            model, generators, pairs.chosen, pairs.rejected, self.models, self.folds, self.recipe
        )
        facts = {"noise_estimate": strength.noise_estimate(strengths.mean)}
        areas = [
            auroc(-mean, wrong)
            for mean, wrong in zip(strengths.mean.cpu(), pairs.wrong.cpu(), strict=True)
        ]
        if None not in areas:
            facts["strength_auroc"] = strengths.mean.new_tensor(areas)
        return strengths, facts


@dataclass(frozen=True, kw_only=True)
class Denoised(StrengthLabels):
    """Labels changed by preference strength: flips first, then soft labels, margins, and weights.

    Args:
        flip: share of the pairs to flip, the weakest; 0 for none.
        smoothing: a of the soft labels 1 - a of pairs of negative strength; 0 for none.
        margin: scale of the margins; 0 for none.
        drop: leave out pairs of negative strength.
        models, folds, recipe: as for `StrengthLabels`.
    """

    flip: float = 0.0
    smoothing: float = 0.0
    margin: float = 0.0
    drop: bool = False

    def __call__(
        self, data: PreferenceFeatures, model: FeatureReward, generators: Sequence[Generator]
    ) -> TrainingTargets:
        """Return all pairs with changed targets, and how well strength tells wrong labels."""
        strengths, facts = self.strengths(data.training, model, generators)
        mean = strengths.mean
        targets = strength.flip(mean, self.flip)
        if self.smoothing:
            targets = strength.soft(mean, self.smoothing, targets=targets)
        if self.margin:
            targets = strength.margin(mean, self.margin, targets=targets)
        if self.drop:
            targets = strength.drop(mean, targets=targets)
        return _training_targets(data.training, targets, facts, strengths.gradients)


@dataclass(frozen=True, kw_only=True)
class Band(StrengthLabels):
    """One of several bands of strength, alone.

    Args:
        index: which band, 0 the weakest.
        count: number of bands of equal size.
        flip: exchange the answers of its pairs.
        models, folds, recipe: as for `StrengthLabels`.
    """

    index: int
    count: int = 10
    flip: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "0 <= index < count")

    def __call__(
        self, data: PreferenceFeatures, model: FeatureReward, generators: Sequence[Generator]
    ) -> TrainingTargets:
        """Return the pairs of the band, its mean strength and its share of wrong labels."""
        strengths, facts = self.strengths(data.training, model, generators)
        rows = strength.bands(strengths.mean, self.count)[:, self.index]
        swap = torch.zeros_like(data.training.wrong).scatter_(-1, rows, self.flip)
        facts |= {
            "band_strength": strengths.mean.gather(-1, rows).mean(-1),
            "band_std": strengths.std.gather(-1, rows).mean(-1),
            "wrong_labels": (data.training.wrong ^ swap).gather(-1, rows).float().mean(-1),
        }
        targets = strength.keep(strengths.mean)._replace(swap=swap)
        return TrainingTargets(targets, rows, facts, strengths.gradients)


def _training_targets(
    pairs: Pairs,
    targets: Targets,
    facts: Mapping[str, Tensor] | None = None,
    gradients: int = 0,
) -> TrainingTargets:
    """Return the targets of all pairs, with the share of labels that are still wrong."""
    # Wrong is a target of which an odd number holds: exchanged, softened below 1/2, wrong label.
    towards = targets.swap ^ (targets.label < 0.5) ^ pairs.wrong
    wrong = (towards * targets.weight).mean(-1) / targets.weight.mean(-1)
    rows = torch.arange(towards.shape[-1], device=towards.device).expand_as(towards)
    return TrainingTargets(targets, rows, {**(facts or {}), "wrong_labels": wrong}, gradients)


def _unchanged(pairs: Pairs) -> Targets:
    return strength.keep(pairs.chosen.new_zeros(pairs.chosen.shape[:2]))
