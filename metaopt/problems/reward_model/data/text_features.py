"""Preferences in words as frozen features.

TF-IDF and SVD, fitted on each run's training texts, or a pretrained model's hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from metaopt.problems.reward_model.data.dialogue import plain
from metaopt.problems.reward_model.data.features import PreferenceFeatures
from metaopt.problems.reward_model.data.pair import Pair, Preferences, flips, split
from metaopt.problems.reward_model.data.pair_sources import transferred
from metaopt.problems.reward_model.data.world import Pairs

HELD_OUT = "held_out"
"""Name of the test on the pairs that do not train."""

Table = Any
"""A sparse matrix of counts, texts by words."""

Encode = Callable[[Any], Tensor]
"""From indices (m,) of pairs to the features (m, 2, d) of their answers."""

Fit = Callable[[Any, int], Encode]
"""From the indices of a run's training pairs and a seed."""


def preference_texts(
    source: Preferences,
    transfer: Mapping[str, Preferences | str] | None = None,
    unlabelled: str = HELD_OUT,
    runs: int = 8,
    training: int | float = 0.75,
    noise: float = 0.0,
    trusted: float = 0.05,
    answer_size: int = 96,
    prompt_size: int = 32,
    words: int = 8_000,
    seed: int = 0,
    encoder: Callable[[Sequence[str]], Tensor] | None = None,
) -> PreferenceFeatures:
    """Return R random splits of real preferences as features, with tests on other data sets.

    A text's features are the SVD coordinates of the TF-IDF of its answer and of its prompt, each
    divided by its standard deviation over the training texts. Words, document frequencies, SVD and
    deviations come from a run's training texts alone.

    With an encoder a text's features are that model's hidden states of prompt and answer read
    together, minus their mean and divided by their deviation over a run's training texts.

    Args:
        source: pairs that are split into a training part and the test `held_out`.
        transfer: further tests, or their sources, by name; `None` for none.
        unlabelled: which test, `held_out` or one of these, gives half of its pairs, without their
            labels, as two responses per prompt; the test is then on the other half.
        runs: number R of splits, >= 1; split i is a function of (seed, i).
        training: pairs that train, or their share; see
            `metaopt.problems.reward_model.data.pair.split`.
        noise: share of training labels that are exchanged, in [0, 1].
        trusted: share of the training pairs whose labels before that are known, in (0, 1].
        answer_size, prompt_size: numbers of features of answer and prompt, >= 1.
        words: most words of the vocabulary, the most frequent ones.
        seed: of the splits, the noise and the SVD.
        encoder: texts to features (n, d) that take the place of TF-IDF and SVD, such as
            `metaopt.problems.reward_model.model.text_encoder.TextEncoder`; `None` for those.

    Raises:
        ValueError: a number out of its range, or an unknown name of unlabelled pairs.
    """
    if runs < 1 or min(answer_size, prompt_size, words) < 1 or not 0 < trusted <= 1:
        raise ValueError(
            f"preference_texts needs runs, answer_size, prompt_size, words >= 1 and trusted in "
            f"(0, 1]; got {runs}, {answer_size}, {prompt_size}, {words} and {trusted}."
        )
    everything = [plain(pair) for pair in source.pairs]
    others: dict[str, Any] = {}
    for name, further in transferred(transfer).items():
        others[name] = range(len(everything), len(everything) + len(further.pairs))
        everything += map(plain, further.pairs)
    seeds = [seed_of(seed, run) for run in range(runs)]
    splits = [split(source.pairs, training, own_seed) for own_seed in seeds]
    # Sides differ by a few pairs where prompts have several; the smallest ones stack.
    sizes = [min(len(s[side]) for s in splits) for side in (0, 1)]
    chosen: list[dict[str, Sequence[int]]] = []
    for run, (rows, held_out) in enumerate(splits):
        tests = {HELD_OUT: held_out[: sizes[1]], **others}
        responses = unlabelled_half(
            tests, unlabelled, np.random.default_rng([seed, run]).permutation
        )
        chosen.append({"training": rows[: sizes[0]], "responses": responses, **tests})
    if encoder is None:
        fit = _counted(everything, words, (answer_size, prompt_size))
    else:
        fit = _encoded(everything, encoder)
    parts: dict[str, list[Tensor]] = {}
    for run, indices in enumerate(chosen):
        encode = fit(np.array(indices["training"]), seeds[run])
        for name, at in indices.items():
            parts.setdefault(name, []).append(encode(np.array(at)))
    stacked = {name: _stacked(features) for name, features in parts.items()}
    wrong = torch.zeros(runs, sizes[0], dtype=torch.bool)
    for run in range(runs):
        wrong[run, list(flips(sizes[0], noise, seeds[run]))] = True
    return PreferenceFeatures(
        _pairs(stacked.pop("training"), wrong),
        max(1, round(trusted * sizes[0])),
        stacked.pop("responses"),
        {name: _pairs(features) for name, features in stacked.items()},
        seed,
        resplit=sizes[1] / sizes[0],
    )


def unlabelled_half(
    tests: dict[str, Any], name: str, permutation: Callable[[int], Iterable[int]]
) -> list[Any]:
    """Take half of a test's pairs, at random, out of it and return them.

    Args:
        tests: pairs by name; the test is left with the other half.
        name: of the test.
        permutation: from a number n to 0..n-1 in random order.

    Raises:
        ValueError: there is no such test, or it has a pair only.
    """
    if name not in tests:
        raise ValueError(f"unlabelled must be one of {', '.join(tests)}; got {name!r}.")
    count = len(tests[name])
    if count < 2:
        raise ValueError(
            f"the test {name} has {count} pair, and half of its pairs are to be unlabelled "
            f"responses: it needs two or more. Let fewer pairs train, or bring more."
        )
    mixed = [tests[name][i] for i in permutation(count)]
    tests[name] = mixed[count // 2 :]
    return mixed[: count // 2]


def seed_of(seed: int, run: int) -> int:
    """Return the seed of a run's split, noise and SVD, unlike those of all others; 32 bits."""
    return int(np.random.SeedSequence((seed, run)).generate_state(1)[0])


def _stacked(features: Sequence[Tensor]) -> Tensor:
    """Return features of all runs; a run with fewer coordinates (few words) has zeros at the end.

    Its reward model is its own, so coordinates of different runs need not correspond.
    """
    width = max(x.shape[-1] for x in features)
    return torch.stack([pad(x, (0, width - x.shape[-1])) for x in features])


def _pairs(both: Tensor, wrong: Tensor | None = None) -> Pairs:
    """Return pairs of features (R, n, 2, d), the better one first where the label is right."""
    better, worse = both.unbind(2)
    if wrong is None:
        wrong = torch.zeros(better.shape[:2], dtype=torch.bool)
    swap = wrong[..., None]
    return Pairs(torch.where(swap, worse, better), torch.where(swap, better, worse), wrong)


def _counted(pairs: Sequence[Pair], words: int, sizes: Sequence[int]) -> Fit:
    """Fit the coordinates of answers and of prompts, of the numbers `sizes`, on chosen pairs."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [str(side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    texts += [str(pair.prompt) for pair in pairs]
    counts = CountVectorizer(dtype=np.float32).fit_transform(texts)
    answers, prompts = counts[: 2 * len(pairs)], counts[2 * len(pairs) :]

    def fit(rows: Any, seed: int) -> Encode:
        both = np.stack([2 * rows, 2 * rows + 1], 1).ravel()
        answer = _coordinates(answers[both], sizes[0], words, seed)
        prompt = _coordinates(prompts[rows], sizes[1], words, seed)

        def encode(chosen: Any) -> Tensor:
            asked = prompt(prompts[chosen])
            sides = [
                np.concatenate([answer(answers[2 * chosen + side]), asked], 1) for side in (0, 1)
            ]
            return torch.from_numpy(np.stack(sides, 1).astype(np.float32))

        return encode

    return fit


def _encoded(pairs: Sequence[Pair], encoder: Callable[[Sequence[str]], Tensor]) -> Fit:
    """Read prompt and answer together, once; fit mean and deviation of the states h on answers."""
    texts = [f"{pair.prompt}{side}" for pair in pairs for side in (pair.chosen, pair.rejected)]
    states = encoder(texts).view(len(pairs), 2, -1)

    def fit(rows: Any, seed: int) -> Encode:
        training = states[rows].flatten(0, 1)
        mean, std = training.mean(0), training.std(0, correction=0).clamp(min=1e-6)
        return lambda chosen: (states[chosen] - mean) / std

    return fit


def _coordinates(counts: Table, size: int, words: int, seed: int) -> Callable[[Table], Any]:
    """Fit SVD coordinates of TF-IDF, each divided by its deviation, on counts (texts, words)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    documents = np.asarray((counts > 0).sum(0)).ravel()
    order = np.argsort(-documents, kind="stable")[:words]
    vocabulary = order[documents[order] > 1]
    if len(vocabulary) < 2:  # pairs without prompts, or hardly any word twice
        return lambda table: np.zeros((table.shape[0], 0))
    weigh = TfidfTransformer(sublinear_tf=True).fit(counts[:, vocabulary])
    weighed = weigh.transform(counts[:, vocabulary])
    svd = TruncatedSVD(min(size, weighed.shape[1] - 1), n_iter=3, random_state=seed)
    with np.errstate(invalid="ignore"):  # of equal texts scikit-learn computes 0 / 0
        std = svd.fit_transform(weighed).std(0)
    scale = np.where(std > 1e-6, std, np.inf)  # a coordinate that all texts share becomes 0
    return lambda table: svd.transform(weigh.transform(table[:, vocabulary])) / scale
