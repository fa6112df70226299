"""A meta-learned scorer as a folder, and the documents of another collection ranked with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from metaopt.engine.adaptation import adapted
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Tree
from metaopt.files.errors import FolderError
from metaopt.nn.encoder import Encoder
from metaopt.problems.few_shot_ranking.bm25 import BM25
from metaopt.problems.few_shot_ranking.fine_tuning import Documents, FineTuning, feedback_loss
from metaopt.problems.few_shot_ranking.metrics import reciprocal_rank_fusion
from metaopt.problems.few_shot_ranking.pair_scorer import PairScorer
from metaopt.problems.few_shot_ranking.relevance_feedback import (
    PROBE,
    check_first_stage,
    first_stage,
)

SETTINGS, WEIGHTS = "ranker.json", "scorer.safetensors"
FORMAT = 1

TOLERANCE = 1e-2
"""Largest difference of an entry of the probe's vector; features in a cache are in float16."""


class Ranked(NamedTuple):
    """Documents of a query's pool that nobody marked, best first.

    Args:
        ids: of the documents.
        scores: larger is better, (n,).
        first_stage: ranks by BM25 among the documents of the pool, from 1.
    """

    ids: Sequence[str]
    scores: Sequence[float]
    first_stage: Sequence[int]


class MarkedPool(NamedTuple):
    """The documents that BM25 returns, and marked ones that it does not.

    Args:
        rows: of the collection, those of the pool in BM25's order, then the marked ones outside.
        size: number of documents in the pool.
        scores: BM25's, standardised over the pool, (n,).
    """

    rows: list[int]
    size: int
    scores: Tensor


class SavedRanker:
    """Re-ranks BM25's first documents for a query, from marked ones; reading it runs no code.

    The scorer is fine-tuned by SGD on the marked documents, relevant and irrelevant ones with half
    of the weight each, at the rate and for the steps that were best on validation queries. They are
    those of the largest k, among those that were tried, which is not above the number of marks of
    each kind.

    Args:
        folder: `ranker` in the folder of a run on a collection; see `export.export`.

    Attributes:
        about: its settings.

    Raises:
        FolderError: the folder is damaged, or another version wrote it.
        FileNotFoundError: the encoder is not there.

    Cost: of a query, the encoder on the query, its pool and the marked documents.
    """

    def __init__(self, folder: str | Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            self.about = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            if self.about["format"] != FORMAT:
                raise ValueError(f"its format is {self.about['format']}, not {FORMAT}")
            _check_settings(self.about)
            tensors = load_file(folder / WEIGHTS)
            if not all(bool(t.isfinite().all()) for t in tensors.values()):
                raise ValueError("it has numbers that are not finite")
            self.probe = tensors.pop("probe")
            self.scorer, self.phi = PairScorer(**self.about["scorer"]), tensors
            width = len(self.probe)
            shapes = {name: tuple(value.shape) for name, value in self.phi.items()}
            if shapes != self.scorer.shapes(width):
                raise ValueError(
                    f"{WEIGHTS} has {shapes} for vectors of {width} entries, and {SETTINGS} asks "
                    f"for {self.scorer.shapes(width)}"
                )
            self.choices = {int(k): (r, s) for k, (r, s) in self.about["tuned"].items()}
            cache = os.environ.get("METAOPT_CACHE")
            self.encoder = Encoder(**self.about["encoder"], cache=cache)
            self._vectors: dict[str, Tensor] = {}
        except (
            OSError,
            SafetensorError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:
            raise FolderError(
                f"{folder} holds no ranker that this version reads: {str(error).rstrip('.')}. Run "
                f"it again."
            ) from error

    def index(self, documents: Mapping[str, str]) -> BM25:
        """Return the first stage of a collection's documents by id."""
        return BM25([*documents.values()], *(self.about["first_stage"][key] for key in ("k1", "b")))

    def choice(self, relevant: int, irrelevant: int) -> tuple[float, int]:
        """Return rate and number of steps of fine-tuning on so many marked documents.

        With fewer marks than the smallest k that was tried, those of that k.
        """
        fitting = [k for k in self.choices if k <= min(relevant, irrelevant)]
        return self.choices[max(fitting, default=min(self.choices))]

    def __call__(
        self,
        query: str,
        documents: Mapping[str, str],
        relevant: Sequence[str] = (),
        irrelevant: Sequence[str] = (),
        ranking: str = "scorer",
        fuse: bool = False,
        index: BM25 | None = None,
    ) -> Ranked:
        """Return the documents of the query's pool but the marked ones.

        Args:
            query: its text.
            documents: of the collection, by id.
            relevant, irrelevant: ids of marked documents; both kinds, or neither, where the ranking
                is the scorer's.
            ranking: scorer; or knn, the cosine with the sum of the directions of the query and the
                relevant documents, which is not trained.
            fuse: add 1 / (60 + rank) of the ranking and of BM25 with the expanded query.
            index: of `index(documents)`, for several queries.

        Raises:
            ValueError: unknown or contradictory marks, or marks of one kind; a query without text,
                or without a word of a document where these are more than a pool; nothing left to
                rank; steps that diverge.
        """
        self.check(query, documents, relevant, irrelevant, ranking)
        index = index or self.index(documents)
        names, settings = [*documents], self.about["first_stage"]
        rows = {name: row for row, name in enumerate(names)}
        marked = [rows[name] for name in (*relevant, *irrelevant)]
        vector = index.vectors([query])
        pool = self._pool(query, index, vector, marked)
        texts = [*documents.values()]
        encoded = self._encoded([query, *(texts[row] for row in pool.rows)])
        marks = torch.tensor([pool.rows.index(row) for row in marked], dtype=torch.long)
        if ranking == "knn":
            unit = normalize(encoded, dim=-1)
            scores = unit[1:] @ (unit[0] + unit[1:][marks[: len(relevant)]].sum(0))
        else:
            scores = self._scores(query, encoded, pool.scores, marks, len(relevant))
        left_out = torch.arange(len(pool.rows)) >= pool.size
        left_out[marks] = True
        scores = scores.masked_fill(left_out, -torch.inf)
        if fuse:
            longer = index.expanded(
                vector, marked[: len(relevant)], settings["terms"], settings["weight"]
            )
            other = torch.from_numpy((longer @ index.weights[pool.rows].T).toarray()[0]).float()
            scores = reciprocal_rank_fusion(scores, other.masked_fill(left_out, -torch.inf))
        order = scores.argsort(dim=0, descending=True, stable=True)
        order = order[~left_out[order]]
        places = order.tolist()
        return Ranked(
            [names[pool.rows[i]] for i in places], scores[order].tolist(), [i + 1 for i in places]
        )

    def _pool(self, query: str, index: BM25, vector: Any, marked: Sequence[int]) -> MarkedPool:
        """Return BM25's first documents and the marked ones.

        Raises:
            ValueError: BM25 cannot choose, or all that it chooses are marked.
        """
        size, count = self.about["first_stage"]["size"], index.weights.shape[0]
        if not vector.nnz and count > size:
            raise ValueError(
                f"no document has a word of the query {query!r}, so BM25 cannot say which "
                f"{size} of {count} are ranked. Ask in words of the documents."
            )
        best, inside = first_stage(index, vector, size)
        pool = best.tolist()
        if {*pool} <= {*marked}:
            raise ValueError(
                f"all {len(pool)} documents that BM25 returns for the query {query!r} are marked: "
                f"none is left to rank. Mark fewer."
            )
        outside = [row for row in marked if row not in {*pool}]
        # Marked documents are scored on the scale of the pool, whether they are in it or not.
        values = np.concatenate([inside, index.scores(vector)[0][outside]])
        values = (values - inside.mean()) / (inside.std() or 1.0)
        return MarkedPool([*pool, *outside], len(pool), torch.from_numpy(values).float())

    def _scores(
        self, query: str, encoded: Tensor, first_stage: Tensor, marks: Tensor, relevant: int
    ) -> Tensor:
        """Return the fine-tuned scorer's scores (n,).

        Args:
            query: its text, for the message of an error.
            encoded: vectors of the query and of n documents, (1 + n, D).
            first_stage: scores of the documents, (n,).
            marks: places of the marked ones among them, relevant ones first.
            relevant: number of these.

        Raises:
            ValueError: fine-tuning diverges.
        """
        documents = encoded[1:]
        x = self.scorer.features(encoded[0], documents, first_stage)
        if self.scorer.marked:
            same = torch.arange(len(documents))[:, None] == marks[:relevant]
            x = self.scorer.with_marks(x, documents, documents[marks[:relevant]], same)
        scores = self.scorer(self._tuned(x[marks], relevant), x).detach()
        if not scores.isfinite().all():
            rate, steps = self.choice(relevant, len(marks) - relevant)
            raise ValueError(
                f"{steps} steps of rate {rate:g} on the documents marked for {query!r} diverge: "
                f"scores are not finite. Rank by knn, or train with smaller "
                f"problem.fine_tuning.rates."
            )
        return scores

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        new = list(dict.fromkeys(t for t in (*texts, PROBE) if t not in self._vectors))
        if new:
            self._vectors |= zip(new, self.encoder(new), strict=True)
        other = self._vectors[PROBE]
        if other.shape != self.probe.shape or (other - self.probe).abs().max() > TOLERANCE:
            raise FolderError(
                f"{self.about['encoder']['source']} is another encoder than the one that this "
                f"ranker was trained on: a probe has other features. Fetch that one again."
            )
        return torch.stack([self._vectors[text] for text in texts])

    def _tuned(self, x: Tensor, relevant: int) -> Tree:
        """Return the scorer fine-tuned on marked documents (n, F), relevant ones first."""
        if not len(x):
            return self.phi
        rate, steps = self.choice(relevant, len(x) - relevant)
        counts = torch.tensor([relevant, len(x) - relevant])
        labels = torch.tensor([1.0, 0.0]).repeat_interleave(counts)
        weights = (0.5 / counts).repeat_interleave(counts)
        one = Documents(*(part.unsqueeze(0) for part in (x, labels, weights)))

        def loss(phi: Tree, theta: Tree, batch: Documents) -> Tensor:
            return feedback_loss(self.scorer, phi, theta, batch, self.about["proximal"])

        theta = adapted(loss, self.phi, one, 1, steps, SGD(lr=rate))[-1]
        return {name: value.squeeze(0) for name, value in theta.items()}

    def check(
        self, query: str, documents: Mapping[str, str], relevant: Sequence[str],
        irrelevant: Sequence[str], ranking: str,
    ) -> None:  # fmt: skip
        """Check what a call is given, without ranking.

        Raises:
            ValueError: it cannot be ranked.
        """
        if not query.strip():
            raise ValueError("the query has no text.")
        if ranking not in ("scorer", "knn"):
            raise ValueError(f"ranking must be scorer or knn; got {ranking!r}.")
        both = [*relevant, *irrelevant]
        for name in both:
            if name not in documents:
                raise ValueError(f"there is no document {name!r} to mark for the query {query!r}.")
            if both.count(name) > 1:
                raise ValueError(f"document {name!r} is marked twice for the query {query!r}.")
        if ranking == "scorer" and bool(relevant) != bool(irrelevant):
            raise ValueError(
                f"the scorer learns from relevant and irrelevant documents; got {len(relevant)} "
                f"and {len(irrelevant)} of them for the query {query!r}. Mark one of each, or "
                f"none, or rank by knn, which needs relevant ones alone."
            )


def _check_settings(about: Mapping[str, Any]) -> None:
    """Refuse settings that were edited, before they rank anything."""
    stages = ("size", "terms", "weight", "k1", "b")
    missing = [
        n for n in ("scorer", "encoder", "first_stage", "proximal", "tuned") if n not in about
    ]
    missing += [n for n in stages if not missing and n not in about["first_stage"]]
    if missing:
        raise ValueError(f"{SETTINGS} lacks {missing[0]}")
    check_first_stage(*(about["first_stage"][name] for name in stages[:3]))
    proximal, tuned = about["proximal"], about["tuned"]
    if not isinstance(proximal, (int, float)) or not 0 <= proximal < float("inf"):
        raise ValueError(f"proximal must be >= 0; got {proximal!r}")
    if not tuned or any(int(k) < 1 for k in tuned):
        raise ValueError(f"tuned needs rate and steps of numbers k >= 1; got {tuned!r}")
    for rate, steps in tuned.values():
        FineTuning((rate,), (steps,))
