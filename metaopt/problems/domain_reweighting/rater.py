"""A rater: the weight of a training example is decided by a network that reads it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from metaopt.engine.protocols import Tree
from metaopt.problems.domain_reweighting.rater_features import Bytes, Features, NGrams
from metaopt.problems.domain_reweighting.rater_networks import MLP, Network
from metaopt.problems.domain_reweighting.task import ReweightingTask, Texts
from metaopt.problems.domain_reweighting.weights import Reads


class Rater:
    """w_b = B softmax(s)_b over a batch of B, with scores s = r_phi(x) of the examples' texts.

    Unlike a table it can be asked about texts that nobody has trained on; see `metaopt score`.
    Where a task trains R models there are as many raters, along a leading axis of phi, equal at
    first: `Descent(consensus=True)` keeps them equal, and otherwise each learns from its own model
    and a score of a text is their mean. All weights are 1 at first.

    Args:
        features: what is read of a text; `None` for `NGrams()`.
        network: from features to a score; `None` for `MLP()`. `Transformer` reads `Bytes`.

    Cost: features of all examples once; then a forward and a backward pass of the network on each
    batch.

    Reference: Calian et al., DataRater: Meta-Learned Dataset Curation, 2025.
    """

    reads: Reads = "phi"

    def __init__(
        self,
        features: Features | None = None,
        network: Network | None = None,
    ) -> None:
        self.features: Features = NGrams() if features is None else features
        self.network: Network = MLP() if network is None else network
        self.members: int | None = None
        if self.network.reads_integers != isinstance(self.features, Bytes):
            raise ValueError(
                f"{type(self.network).__name__} cannot read {type(self.features).__name__}: "
                f"Transformer reads Bytes, and MLP reads NGrams or Encoder."
            )
        self.centre, self.scale = torch.zeros(()), torch.ones(())
        self.rows = torch.zeros(0)

    def read(self, task: ReweightingTask, models: int | None, device: torch.device) -> None:
        """Compute the features of a task's training examples.

        Args:
            task: whose texts are read.
            models: how many it trains along a leading axis, `None` without one.
            device: where the features are kept.

        Raises:
            ValueError: the task gives no text of them.
        """
        if not isinstance(task, Texts):
            raise ValueError(
                f"Rater reads the texts of training examples, and {type(task).__name__} has none: "
                f"give it row_texts and text_columns (metaopt.problems.domain_reweighting.task."
                f"Texts), or use weights=table."
            )
        self.members = models
        rows = self.features(task.row_texts)
        if rows.is_floating_point():
            # One scale for all: rare features, which unseen texts may have more of, stay small.
            self.centre = rows.mean(0)
            self.scale = (rows - self.centre).square().mean().sqrt().clamp(min=1e-12)
        self.rows = self.prepared(rows).to(device)

    def prepared(self, features: Tensor) -> Tensor:
        """Return features as the network reads them."""
        if not features.is_floating_point():
            return features
        return (features - self.centre) / self.scale

    def init(self, start: Tensor, domain: Tensor, generator: Generator) -> Tree:
        """Return phi; the members are equal."""
        phi = {k: v.to(start.device) for k, v in self.network.init(self.rows, generator).items()}
        if self.members is None:
            return phi
        return {k: v.expand(self.members, *v.shape).clone() for k, v in phi.items()}

    def scores(self, outer: Tree, rows: Tensor) -> Tensor:
        """Return the scores of training examples, (..., B)."""
        return self.of_features(outer, self.rows[rows])

    def of_features(self, outer: Tree, features: Tensor) -> Tensor:
        """Return the scores (..., B) of prepared features."""
        if features.is_floating_point():
            features = features.to(next(iter(outer.values())).dtype)
        return self.network(outer, features)

    @torch.no_grad()
    def rate(self, outer: Tree, texts: Sequence[str]) -> Tensor:
        """Return the scores (n,) of any texts; of several members the mean."""
        return self.rate_features(outer, self.prepared(self.features(texts)).to(self.rows.device))

    @torch.no_grad()
    def rate_features(self, outer: Tree, features: Tensor, part: int = 1024) -> Tensor:
        """Return the scores (n,) of prepared features; of several members the mean."""
        parts = [self.of_features(outer, x) for x in features.split(part)]
        scores = torch.cat(parts, -1) if parts else features.new_zeros(0)
        return scores.flatten(0, -2).mean(0) if scores.ndim > 1 else scores

    def __call__(self, outer: Tree, rows: Tensor, domain: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of a batch, (..., B), of mean 1."""
        return torch.softmax(self.scores(outer, rows), -1) * rows.shape[-1]

    def slopes(self, grad: Tree, domain: Tensor) -> Tensor | None:
        """Return `None`."""
        return None
