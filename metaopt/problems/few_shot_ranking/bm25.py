"""BM25, and a query expanded by terms of documents that a user has marked as relevant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

TOKEN = r"(?u)\b\w+\b"
K1, B = 1.2, 0.75
"""Lucene's saturation of a term's frequency, and correction for a document's length."""


class BM25:
    """score(q, d) = sum_t q_t idf_t f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|)).

    f is how often d has the term t, q_t how often q has it, idf_t = log(1 + (N - n_t + 1/2) /
    (n_t + 1/2)) for n_t of N documents that have it. Terms are words and numbers in lower case,
    without scikit-learn's list of English stop words; they are not stemmed.

    Args:
        texts: the N documents.
        k1, b: saturation of f and correction for length; the defaults of Lucene.

    Attributes:
        weights: a document's summand of each term, (N, terms).

    Cost: a sparse matrix with an entry for each distinct term of a document.

    Reference: Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009.

    Example:
        >>> index = BM25(["a wing in a shock wave", "heat transfer", "shock tubes"])
        >>> index.scores(index.vectors(["shock waves and shock tubes"])).round(2).tolist()
        [[0.84, 0.0, 2.04]]
    """

    def __init__(self, texts: Sequence[str], k1: float = K1, b: float = B) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"BM25 needs k1 >= 0 and b in [0, 1]; got k1={k1}, b={b}.")
        self.vectorizer = CountVectorizer(token_pattern=TOKEN, stop_words="english")
        try:
            counts = self.vectorizer.fit_transform(texts).tocsr().astype(np.float64)
        except ValueError as error:
            raise ValueError(f"BM25 needs documents with words: {error}.") from error
        lengths = np.asarray(counts.sum(1)).ravel()
        having = np.asarray((counts > 0).sum(0)).ravel()
        idf = np.log1p((len(texts) - having + 0.5) / (having + 0.5))
        rows = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        norm = k1 * (1 - b + b * lengths / lengths.mean())
        f = counts.data
        data = idf[counts.indices] * f * (k1 + 1) / (f + norm[rows])
        self.weights: Any = sparse.csr_matrix((data, counts.indices, counts.indptr), counts.shape)

    def vectors(self, texts: Sequence[str]) -> Any:
        """Return how often queries have each term, a sparse (Q, terms)."""
        return self.vectorizer.transform(texts).tocsr().astype(np.float64)

    def scores(self, queries: Any) -> Any:
        """Return the scores of all documents, an array (Q, N), for term weights (Q, terms)."""
        return np.asarray((queries @ self.weights.T).todense())

    def expanded(
        self, query: Any, relevant: Sequence[int], terms: int = 32, weight: float = 0.25
    ) -> Any:
        """Return a query (1, terms) with terms of relevant documents added.

        Added are the terms, not in the query, whose summed BM25 weight in these documents is
        largest, each as `weight` of a word of the query; fewer where they have fewer.

        Args:
            query: of `vectors`.
            relevant: rows of documents.
            terms: number of added terms, >= 0.
            weight: of one.
        """
        sums = np.asarray(self.weights[list(relevant)].sum(0)).ravel()
        sums[query.indices] = 0
        best = np.argsort(-sums, kind="stable")[:terms]
        best = best[sums[best] > 0]
        added = sparse.csr_matrix(
            (np.full(len(best), weight), (np.zeros(len(best), int), best)), query.shape
        )
        return query + added
