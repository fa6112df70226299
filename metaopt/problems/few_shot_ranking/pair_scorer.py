"""What scores documents for a query; a small network that does so from frozen vectors of both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.problems.few_shot_ranking.pools import Pools


class Scorer(Protocol):
    """Scores pairs of a query and a document by weights, the outer and the inner variable."""

    def read(self, pools: Pools) -> None:
        """Get ready for these pools; called once, before everything else.

        Raises:
            ValueError: they lack what the scorer reads.
        """
        ...

    def init(self, size: int, generator: Generator) -> Tree:
        """Return the first weights, for vectors of this size."""
        ...

    def pairs(self, pools: Pools, query: Tensor, positions: Tensor, shots: int) -> Tensor:
        """Return x (..., n, F) of documents at positions (..., n) of the pools of queries (...).

        The first `shots` relevant documents of a query's feedback are known.
        """
        ...

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return scores (..., n) of x (..., n, F), by weights with the same axes in front."""
        ...


class PairScorer:
    """score = MLP(x), or scale * cos(q, d) + offset + MLP(x) as a residual of the cosine.

    x = [D q*d, sqrt(D) |q-d|, cos(q, d), s], with q and d of length 1, D their size and s the first
    stage's score: entries are about 1 whatever the encoder. The score is a logit of relevance.

    With marked=true, cos(q, d) becomes the mean of cos(q, d) and cos(r, d) over the k relevant
    documents r of the query's feedback, d itself left out: a residual scorer begins as kNN.

    Args:
        widths: sizes of the hidden layers, which have ReLUs.
        residual: add the scaled cosine, and start the last layer at a hundredth of torch's size:
            the scorer begins as the encoder's own ranking.
        document: x has sqrt(D) d in front, for vectors whose entries mean the same for all queries.
        marked: whether the relevant feedback is in the cosine.
        scale, offset: of the cosine, constants; those of sentence encoders, whose cosines are
            about .4 at the border between relevant and irrelevant.

    Example:
        >>> scorer = PairScorer(widths=(8,))
        >>> phi = scorer.init(4, torch.Generator().manual_seed(0))
        >>> x = scorer.features(torch.ones(4), torch.eye(4), torch.zeros(4))
        >>> scorer(phi, x).shape, x.shape
        (torch.Size([4]), torch.Size([4, 10]))
    """

    def __init__(
        self, widths: Sequence[int] = (64,), residual: bool = True, document: bool = False,
        marked: bool = False, scale: float = 12.0, offset: float = -5.0,
    ) -> None:  # fmt: skip
        self.widths, self.residual, self.document = tuple(widths), residual, document
        self.marked, self.scale, self.offset = marked, scale, offset
        check_ranges(self, "residual", "document", "marked", "scale", "offset")
        if any(type(width) is not int or width < 1 for width in self.widths):
            raise ValueError(
                f"PairScorer needs widths to be integers >= 1; got {list(self.widths)}."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments, as JSON has them."""
        return {**vars(self), "widths": list(self.widths)}

    def read(self, pools: Pools) -> None:
        """Check that the pools have vectors."""
        if not pools.documents.shape[-1]:
            raise ValueError(
                "PairScorer reads vectors, and those of these pools have no entries; give "
                "relevance_pools an encoder."
            )

    def init(self, size: int, generator: Generator) -> Tree:
        """Return weights (in, out) and biases for vectors of this size, drawn as torch does."""
        shapes, last = self.shapes(size), f"layer{len(self.widths) + 1}"
        phi = {}
        for name, shape in shapes.items():
            layer = name.split(".")[0]
            fan_in = shapes[f"{layer}.weight"][0]
            bound = fan_in**-0.5 * (0.01 if self.residual and layer == last else 1.0)
            phi[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
        return phi

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights, for vectors of this size."""
        inputs = (2 + self.document) * size + 2
        shapes: dict[str, tuple[int, ...]] = {}
        pairs = itertools.pairwise((inputs, *self.widths, 1))
        for i, (fan_in, fan_out) in enumerate(pairs, 1):
            shapes |= {f"layer{i}.weight": (fan_in, fan_out), f"layer{i}.bias": (fan_out,)}
        return shapes

    def pairs(self, pools: Pools, query: Tensor, positions: Tensor, shots: int) -> Tensor:
        """Return x (..., n, F) of documents at positions (..., n) of the pools of queries (...)."""
        documents = pools.documents[pools.pool[query].gather(-1, positions)]
        first_stage = pools.first_stage[query].gather(-1, positions)
        x = self.features(pools.queries[query], documents, first_stage)
        if not self.marked:
            return x
        places = pools.feedback[query][..., 0, :shots]
        marks = pools.documents[pools.pool[query].gather(-1, places)]
        return self.with_marks(x, documents, marks, positions[..., None] == places[..., None, :])

    def with_marks(self, x: Tensor, documents: Tensor, marks: Tensor, same: Tensor) -> Tensor:
        """Return x (..., n, F) with marked documents in the cosine.

        Args:
            x: of `features`.
            documents: (..., n, D).
            marks: relevant ones, (..., k, D).
            same: whether a document is a marked one, (..., n, k): its cosine with itself says
                nothing of the others.
        """
        cosines = normalize(documents, dim=-1) @ normalize(marks, dim=-1).transpose(-1, -2)
        others = cosines.masked_fill(same, 0.0).sum(-1) + x[..., -2]
        mean = others / (1 + (~same).sum(-1))
        return torch.cat([x[..., :-2], mean.unsqueeze(-1), x[..., -1:]], -1)

    def features(self, query: Tensor, documents: Tensor, first_stage: Tensor) -> Tensor:
        """Return x (..., n, F) of queries (..., D), documents (..., n, D) and scores (..., n)."""
        q, d = normalize(query, dim=-1).unsqueeze(-2), normalize(documents, dim=-1)
        size = query.shape[-1]
        parts = [size**0.5 * d] if self.document else []
        parts += [size * q * d, size**0.5 * (q - d).abs(), (q * d).sum(-1, keepdim=True)]
        return torch.cat([*parts, first_stage.unsqueeze(-1)], -1)

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return scores (..., n) of x (..., n, F), by weights with the same axes in front."""
        hidden = x
        for i in range(1, len(self.widths) + 2):
            hidden = hidden.relu() if i > 1 else hidden
            bias = weights[f"layer{i}.bias"].unsqueeze(-2)
            hidden = hidden @ weights[f"layer{i}.weight"] + bias
        scores = hidden.squeeze(-1)
        return scores + self.scale * x[..., -2] + self.offset if self.residual else scores
