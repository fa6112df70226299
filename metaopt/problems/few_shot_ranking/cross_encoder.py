"""A transformer that reads query and document together, trained in its biases and its head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.nn.transformers_model import TransformersModel
from metaopt.problems.few_shot_ranking.pools import Pools


class CrossEncoder:
    """score = the one logit of an encoder on [CLS] query [SEP] document.

    Trained are the biases of all layers and the head (BitFit), 26 thousand numbers of MiniLM's 22
    million; there is no dropout, so that losses are functions of their arguments. Attention is
    transformers' eager one, whose derivative can be differentiated again (MAML).

    Args:
        source: a folder, an id of the hub, minilm, which `metaopt-fetch` brings, or a configuration
            with `model_type` for random weights.
        max_length: most tokens of a pair, >= 2; a document loses its end.
        batch: pairs in a forward pass, >= 1.
        seed: of new weights: the head, or all of a configuration.
        device: where the model lives.

    Cost: a forward and backward pass of each pair; on a CPU a pool of 200 pairs of 256 tokens is
    minutes, so cap the pools there (`size` of `relevance_pools`).

    References: Nogueira and Cho, Passage Re-ranking with BERT, 2019; Ben Zaken et al., BitFit, ACL
    2022.
    """

    def __init__(
        self, source: str | Path | Mapping[str, Any], max_length: int = 256, batch: int = 64,
        seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.source, self.max_length, self.batch = source, max_length, batch
        self.seed, self.device = seed, device
        check_ranges(self, "max_length >= 2", "batch >= 1")
        self._model: TransformersModel | None = None

    def read(self, pools: Pools) -> None:
        """Make the model, with a token for each word of the pools where it is a configuration.

        Raises:
            ValueError: the pools have no texts, or more tokens are asked for than the model has
                positions.
        """
        if pools.texts is None:
            raise ValueError(
                "CrossEncoder reads texts, and these pools have vectors alone; make them by "
                "relevance_pools."
            )
        self.queries, self.documents = pools.texts
        self._model = TransformersModel(
            "sequence", (*self.queries, *self.documents), self.source, trains="biases",
            seed=self.seed, device=self.device,
        )  # fmt: skip
        self._model.check_room(self.max_length)

    @property
    def model(self) -> TransformersModel:
        """The encoder; `read` makes it."""
        if self._model is None:
            raise RuntimeError("CrossEncoder needs read(pools) before it is used.")
        return self._model

    def init(self, size: int, generator: Generator) -> Tree:
        """Return the biases and the head of the source, the same for every generator."""
        return self.model.init()

    def pairs(self, pools: Pools, query: Tensor, positions: Tensor, shots: int) -> Tensor:
        """Return rows of query and document (..., n, 2) at positions (..., n) of pools (...).

        Marked documents are in no pair; fine-tuning reads them.
        """
        documents = pools.pool[query].gather(-1, positions)
        return torch.stack([query.unsqueeze(-1).expand_as(documents), documents], -1)

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return scores (..., n) of pairs (..., n, 2), by weights with the same axes in front."""
        if x.ndim > 2:
            parts = [
                self({name: value[i] for name, value in weights.items()}, x[i])
                for i in range(len(x))
            ]
            return torch.stack(parts)
        return torch.cat([self._scores(dict(weights), some) for some in x.split(self.batch)])

    def _scores(self, weights: Tree, pairs: Tensor) -> Tensor:
        rows = pairs.tolist()
        first, second = (
            [texts[row[i]] for row in rows]
            for i, texts in enumerate((self.queries, self.documents))
        )
        tokenizer = self.model.tokenizer
        cut: dict[str, Any] = {
            "max_length": self.max_length, "padding": True, "return_tensors": "pt",
        }  # fmt: skip
        if tokenizer.sep_token is None:  # of words, which puts nothing between two texts
            joined = [f"{q} [STEP] {d}" for q, d in zip(first, second, strict=True)]
            inputs = tokenizer(joined, truncation=True, **cut)
        else:
            inputs = tokenizer(first, second, truncation="only_second", **cut)
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        return self.model.logits(weights, inputs, train=False).squeeze(-1)
