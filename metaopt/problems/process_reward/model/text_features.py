"""Frozen features of steps: TF-IDF of question, prefix and step, reduced by a truncated SVD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize
from torch import Tensor

from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.model.standardize import moments, standardized
from metaopt.problems.process_reward.model.steps import check_steps

TOKEN = r"(?u)\w+|[^\w\s]"


@dataclass(frozen=True)
class TextFeatures:
    """x = ([V q, V p, V s, log(1 + i), log(1 + |s|)] - mean) / deviation of every step.

    q, p and s are the TF-IDF vectors (words, numbers and signs; (1 + log count) idf, of norm 1) of
    the question, of the steps before, and of the step i itself; |s| is its number of words. Each
    feature is clipped to [-10, 10].

    Args:
        vocabulary: words, in the order of the columns.
        idf: their inverse document frequencies.
        components: V, (size, words).
        mean, deviation: of the features on the training chains.
    """

    vocabulary: tuple[str, ...]
    idf: Tensor
    components: Tensor
    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(
        cls, chains: Sequence[Chain], size: int = 64, words: int = 20_000, seed: int = 0
    ) -> TextFeatures:
        """Return the features of training chains, whose text alone is read.

        Args:
            chains: each with a step.
            size: columns of V, >= 1; fewer where the text has fewer words.
            words: most words of the vocabulary, the most frequent ones, >= 1.
            seed: of the randomised SVD.

        Raises:
            ValueError: one of these is not met, or texts without words.

        Reference: Halko, Martinsson and Tropp, SIAM Review 2011 (randomised SVD).
        """
        if size < 1 or words < 1:
            raise ValueError(f"features need size >= 1 and words >= 1; got {size} and {words}.")
        check_steps(chains)
        counter = CountVectorizer(token_pattern=TOKEN, max_features=words, dtype=np.float32)
        texts = [t for chain in chains for t in (chain.prompt, *chain.steps)]
        try:
            counts = counter.fit_transform(texts)
        except ValueError as error:
            raise ValueError("the training chains have no word to make features of.") from error
        idf = TfidfTransformer(sublinear_tf=True).fit(counts).idf_.astype(np.float32)
        size = min(size, *counts.shape)
        svd = TruncatedSVD(size, algorithm="randomized", random_state=seed)
        svd.fit(_tfidf(counts, idf))
        width = 3 * size + 2
        start = cls(
            tuple(map(str, counter.get_feature_names_out())),
            torch.from_numpy(idf),
            torch.from_numpy(svd.components_.astype(np.float32)),
            torch.zeros(width),
            torch.ones(width),
        )
        return cls(start.vocabulary, start.idf, start.components, *moments(start(chains)))

    @property
    def width(self) -> int:
        """Number of features of a step."""
        return len(self.mean)

    def __call__(self, chains: Sequence[Chain]) -> Tensor:
        """Return the features (total steps, width) of all steps, chain after chain."""
        check_steps(chains)
        counter = CountVectorizer(
            token_pattern=TOKEN, vocabulary=list(self.vocabulary), dtype=np.float32
        )
        numbers = [len(chain.steps) for chain in chains]
        questions = counter.transform([chain.prompt for chain in chains])
        steps = counter.transform([step for chain in chains for step in chain.steps])
        earlier = sparse.block_diag([np.tri(n, k=-1, dtype=np.float32) for n in numbers], "csr")
        before = sparse.csr_matrix(earlier @ steps)  # each row: sum of the chain's earlier steps
        blocks = [self._reduce(block) for block in (questions, before, steps)]
        blocks[0] = np.repeat(blocks[0], numbers, axis=0)
        place = np.concatenate([np.arange(n) for n in numbers])
        length = np.asarray(steps.sum(1)).ravel()
        more = np.log1p(np.stack([place, length], 1)).astype(np.float32)
        features = torch.from_numpy(np.concatenate([*blocks, more], 1))
        return standardized(features, self.mean, self.deviation)

    def _reduce(self, counts: sparse.csr_matrix) -> np.ndarray:
        return np.asarray(_tfidf(counts, self.idf.numpy()) @ self.components.numpy().T)


def _tfidf(counts: sparse.csr_matrix, idf: np.ndarray) -> sparse.csr_matrix:
    weighted = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    weighted.data = 1 + np.log(weighted.data)
    return normalize(weighted @ sparse.diags(idf), copy=False)
