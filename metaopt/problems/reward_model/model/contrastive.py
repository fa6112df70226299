"""Contrastive losses on the features of a reward model: SimCSE and SwAV."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.nn.stacked_features import FeatureReward

KINDS = ("simcse", "swav")
ITEMS = ("pairs", "differences")
PROTOTYPES = "prototypes"


def simcse(first: Tensor, second: Tensor, temperature: float = 0.05) -> Tensor:
    """Return the mean over items of -log [ e^{s_ii} / sum_j e^{s_ij} ], (...,).

    s_ij = cos(first_i, second_j) / temperature: an item's second view is to be closer to its first
    one than those of the other items.

    Args:
        first, second: two views of N items, (..., N, h).
        temperature: > 0.

    References: Gao, Yao and Chen, SimCSE, EMNLP 2021.
    """
    scores = normalize(first, dim=-1) @ normalize(second, dim=-1).mT / temperature
    same = scores.diagonal(dim1=-2, dim2=-1)
    return (scores.logsumexp(-1) - same).mean(-1)


def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Return soft assignments (..., N, K) of items to prototypes, each prototype used equally.

    The maximiser q of sum q s + epsilon entropy(q) whose rows sum to 1 and whose columns sum to
    N / K, after so many of Sinkhorn and Knopp's iterations; rows sum to 1 after any number.

    Args:
        scores: (..., N, K).
        epsilon: > 0; small makes assignments hard.
        iterations: >= 1.

    References: Cuturi, NIPS 2013; Caron et al., SwAV, NeurIPS 2020.
    """
    log = scores / epsilon  # in logarithms: small shares do not underflow
    share = math.log(scores.shape[-2] / scores.shape[-1])
    for _ in range(iterations):
        log = log - log.logsumexp(-2, keepdim=True) + share
        log = log - log.logsumexp(-1, keepdim=True)
    return log.exp()


def swav(first: Tensor, second: Tensor, prototypes: Tensor, temperature: float = 0.1) -> Tensor:
    """Return CE(codes of view 2, p of view 1) + CE(codes of view 1, p of view 2).

    p = softmax(cos(h, c_k) / temperature) over prototypes c_k; the codes are `sinkhorn` of the
    cosines and have no gradient.

    Args:
        first, second: two views of N items, (..., N, h).
        prototypes: (..., K, h).
        temperature: > 0.

    Returns:
        Means over items, (...,).

    References: Caron et al., SwAV, NeurIPS 2020.
    """
    centre = normalize(prototypes, dim=-1)
    scores = [normalize(view, dim=-1) @ centre.mT for view in (first, second)]
    codes = [sinkhorn(score.detach()) for score in scores]
    log_p = [(score / temperature).log_softmax(-1) for score in scores]
    return -(codes[1] * log_p[0] + codes[0] * log_p[1]).sum(-1).mean(-1)


@dataclass(frozen=True)
class Contrastive:
    """A contrastive loss that is added to Bradley and Terry's.

    Two views of an answer are two copies of its features, from each of which a share was dropped;
    what is contrasted is their last hidden layer f. Items are the answers' f, or f(chosen) -
    f(rejected) and its negative; in the latter case the negative is the easiest item to tell apart,
    with cosine -1. Bradley and Terry's loss is taken on the answers and on both views.

    Args:
        model: the architecture; f is not empty, so it has a hidden layer.
        generators: one per run, or one for all, for the dropped features.
        kind: simcse or swav.
        items: pairs or differences.
        weight: beta, factor of the loss, >= 0 (the paper: 1 for SimCSE, 0.5 for SwAV on
            differences with 20 prototypes, 0.1 for SwAV on pairs with 50).
        temperature: > 0, or `None` for 0.05 with SimCSE and 0.1 with SwAV.
        dropped: share of the features, in (0, 1).
        prototypes: K >= 2, of SwAV.

    Raises:
        ValueError: one of these is not met.

    References: Wang et al., Secrets of RLHF in Large Language Models Part II, 2024, section 3.
    """

    model: FeatureReward
    generators: Sequence[Generator]
    kind: str = "simcse"
    items: str = "pairs"
    weight: float = 1.0
    temperature: float | None = None
    dropped: float = 0.05
    prototypes: int = 20

    def __post_init__(self) -> None:
        check_choices(self, kind=KINDS, items=ITEMS)
        check_ranges(
            self, "weight >= 0", "temperature > 0 or null", "0 < dropped < 1", "prototypes >= 2"
        )
        if len(self.model.sizes) < 3:
            raise ValueError("Contrastive needs a model with a hidden layer; its widths are empty.")

    def init(
        self, params: Mapping[str, Tensor], generators: Sequence[Generator]
    ) -> dict[str, Tensor]:
        """Return the parameters and, for SwAV, prototypes (G, K, h) on the unit sphere.

        Args:
            params: of the model, as `FeatureReward.init` returns them.
            generators: one per model.
        """
        if self.kind == "simcse":
            return dict(params)
        shape = self.prototypes, self.model.sizes[-2]
        drawn = [torch.randn(shape, generator=g, device=g.device) for g in generators]
        return {**params, PROTOTYPES: normalize(torch.stack(drawn), dim=-1)}

    def views(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return two copies of x, in each of which new features are dropped, the rest scaled up.

        Args:
            x: features (G, B, 2, d) of chosen and rejected answers for G = R k models, a run's k
                models one after the other.

        Raises:
            ValueError: G is not a multiple of the number R of generators.
        """
        if len(x) % len(self.generators):
            raise ValueError(
                f"Contrastive needs as many models for each of {len(self.generators)} generators; "
                f"got {len(x)} models."
            )
        return self._view(x), self._view(x)

    def __call__(self, params: Mapping[str, Tensor], views: Sequence[Tensor]) -> Tensor:
        """Return beta times the loss of each model, (G,), of what `views` returned."""
        first, second = (self._items(params, view) for view in views)
        if self.kind == "simcse":
            return self.weight * simcse(first, second, self.temperature or 0.05)
        centre = params[PROTOTYPES]
        return self.weight * swav(first, second, centre, self.temperature or 0.1)

    def add_to(
        self, losses: Callable[[Tensor], Tensor], params: Mapping[str, Tensor], x: Tensor
    ) -> Tensor:
        """Return the mean of each pair's losses on x and on its views, plus this loss, (G, B).

        Args:
            losses: features (G, B, 2, d) to the pairs' losses (G, B).
            params: of G models; the loss of each is added to all of its pairs.
            x: features of the chosen and the rejected answers.
        """
        views = self.views(x)
        each = torch.stack([losses(copy) for copy in (x, *views)])
        return each.mean(0) + self(params, views)[:, None]

    def _view(self, x: Tensor) -> Tensor:
        each = len(x) // len(self.generators)
        masks = [
            torch.rand(each, *x.shape[1:], generator=g, device=g.device) >= self.dropped
            for g in self.generators
        ]
        return x * torch.cat(masks) / (1 - self.dropped)

    def _items(self, params: Mapping[str, Tensor], view: Tensor) -> Tensor:
        good, bad = self.model.features(params, view).unbind(2)
        if self.items == "differences":
            good, bad = good - bad, bad - good
        return torch.cat((good, bad), 1)
