"""A process reward model on frozen features of text: minutes on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn.functional import dropout

from metaopt.nn.stacked_features import ACTIVATIONS, FeatureReward
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.model.steps import Steps
from metaopt.problems.process_reward.model.text_features import TextFeatures


class StepFeatures(Protocol):
    """Features of steps that nothing trains."""

    @property
    def width(self) -> int:
        """Number of features of a step."""
        ...

    def __call__(self, chains: Sequence[Chain]) -> Tensor:
        """Return the features (total steps, width) of all steps, chain after chain."""
        ...


class FeatureScorer:
    """z = MLP(x) of each step, x its frozen features, by default `TextFeatures`.

    What has a leading axis R in the tensors has one in the log-odds: R models, trained at once.

    Args:
        train: training chains, on whose text alone the features are fitted.
        size, words: see `TextFeatures.fit`.
        widths: sizes of the hidden layers, each >= 1; empty for a linear model.
        activation: tanh, relu or gelu.
        dropout: probability of dropping a hidden unit, in [0, 1).
        seed: of the features.
        features: fitted already, such as `FrozenFeatures`; `None` to fit `TextFeatures`.

    Raises:
        ValueError: one of these is not met.
    """

    def __init__(
        self,
        train: Sequence[Chain],
        size: int = 64,
        words: int = 20_000,
        widths: Sequence[int] = (128,),
        activation: str = "relu",
        dropout: float = 0.0,
        seed: int = 0,
        features: StepFeatures | None = None,
    ) -> None:
        self.features: StepFeatures = features or TextFeatures.fit(train, size, words, seed)
        self.network = FeatureReward(self.features.width, widths, activation, dropout)

    @property
    def source(self) -> object:
        """What the frozen model is read from that makes the features; `None` without one."""
        return getattr(self.features, "source", None)

    def encode(self, chains: Sequence[Chain]) -> Steps:
        """Return chains as rows of one table of features.

        Raises:
            ValueError: no chain, or one without steps.
        """
        table = self.features(chains)
        counts = torch.tensor([len(chain.steps) for chain in chains])
        places = torch.arange(int(counts.max()))
        mask = places < counts[:, None]
        ends = ((counts.cumsum(0) - counts)[:, None] + places).masked_fill(~mask, 0)
        return Steps(mask=mask, ends=ends, cut=torch.zeros_like(counts), table=table)

    def init(self, generator: Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return {"0.weight": (inputs, outputs), "0.bias": (1, outputs), ...} and no buffers.

        Both are uniform in +-1 / sqrt(inputs), as in `torch.nn.Linear`.
        """
        params = self.network.init([generator])
        return {name: value[0] for name, value in params.items()}, {}

    def logits(self, tensors: Mapping[str, Tensor], steps: Steps, train: bool) -> Tensor:
        """Return the log-odds (B, S), or (R, B, S); 0 where the mask is False.

        Raises:
            ValueError: chains that another scorer has encoded.
        """
        if steps.table is None:
            raise ValueError(
                "these chains were encoded by another scorer; encode them with this one."
            )
        x = steps.table[steps.ends[steps.mask]].to(tensors["0.weight"].dtype)
        activation = ACTIVATIONS[self.network.activation]
        for layer in range(len(self.network.sizes) - 1):
            if layer:
                x = dropout(activation(x), self.network.dropout, train)
            x = x @ tensors[f"{layer}.weight"] + tensors[f"{layer}.bias"]
        at = steps.mask.flatten().nonzero().squeeze(1)
        empty = x.new_zeros(*x.shape[:-2], steps.mask.numel())
        result: Tensor = empty.index_copy(-1, at, x.squeeze(-1)).unflatten(-1, steps.mask.shape)
        return result
