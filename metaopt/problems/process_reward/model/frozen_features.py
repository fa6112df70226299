"""Frozen features of steps: hidden states and likelihoods of a pretrained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.model.feature_scorer import FeatureScorer
from metaopt.problems.process_reward.model.frozen_reader import FrozenReader
from metaopt.problems.process_reward.model.standardize import moments, standardized


@dataclass(frozen=True)
class FrozenFeatures:
    """x = (what a `FrozenReader` makes of a step - mean) / deviation, clipped to [-10, 10].

    Args:
        reader: the frozen model.
        mean, deviation: of its features on the training chains.
    """

    reader: FrozenReader
    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, chains: Sequence[Chain], reader: FrozenReader) -> FrozenFeatures:
        """Return the features, in deviations from their mean on these chains.

        Raises:
            ValueError: chains that the reader refuses.
        """
        return cls(reader, *moments(torch.cat(reader(chains))))

    @property
    def width(self) -> int:
        """Number of features of a step."""
        return self.reader.width

    @property
    def source(self) -> str | Path:
        """Where the frozen model is read from."""
        return self.reader.source

    def __call__(self, chains: Sequence[Chain]) -> Tensor:
        """Return the features (total steps, width) of all steps, chain after chain."""
        return standardized(torch.cat(self.reader(chains)), self.mean, self.deviation)


def frozen_scorer(
    train: Sequence[Chain],
    reader: FrozenReader,
    widths: Sequence[int] = (128,),
    activation: str = "relu",
    dropout: float = 0.0,
) -> FeatureScorer:
    """Return a `FeatureScorer` on the `FrozenFeatures` of a reader, fitted to training chains."""
    features = FrozenFeatures.fit(train, reader)
    return FeatureScorer((), features=features, widths=widths, activation=activation,
                         dropout=dropout)  # fmt: skip
