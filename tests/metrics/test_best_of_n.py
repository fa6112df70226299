"""Best of n, pass@n and majority votes against every subset, and the bootstrap against scipy."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import comb

from metaopt.metrics.best_of_n import best_of_n, interval, majority_vote, pass_at_n

QUESTIONS, CANDIDATES = 12, 7


def drawn(levels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, levels, (QUESTIONS, CANDIDATES)) / 3
    return scores, draw.random((QUESTIONS, CANDIDATES)) < draw.random((QUESTIONS, 1))


def over_subsets(pick: Any, count: int = CANDIDATES, questions: int = QUESTIONS) -> np.ndarray:
    """Return the mean of `pick(question, subset)` over all subsets of each size."""
    return np.array(
        [
            [
                np.mean([pick(q, list(s)) for s in itertools.combinations(range(count), n)])
                for n in range(1, count + 1)
            ]
            for q in range(questions)
        ]
    )


@pytest.mark.parametrize("levels", [1, 2, 4, 10_000])
def test_best_of_n_is_the_mean_over_all_subsets(levels: int) -> None:
    scores, correct = drawn(levels)

    def pick(q: int, subset: list[int]) -> float:
        best = scores[q, subset] == scores[q, subset].max()
        return float(correct[q, subset][best].mean())

    np.testing.assert_allclose(best_of_n(scores, correct), over_subsets(pick), atol=1e-12)


def test_pass_at_n_is_the_mean_over_all_subsets() -> None:
    _, correct = drawn(2)
    expected = over_subsets(lambda q, s: correct[q, s].any())
    np.testing.assert_allclose(pass_at_n(correct), expected, atol=1e-12)
    perfect = best_of_n(correct, correct)
    np.testing.assert_allclose(perfect, expected, atol=1e-12)


@pytest.mark.parametrize("kinds", [1, 2, 3, 7])
def test_a_majority_vote_is_the_mean_over_all_subsets(kinds: int) -> None:
    draw = np.random.default_rng(kinds)
    answers = draw.integers(0, kinds, (QUESTIONS, CANDIDATES)).astype(str).tolist()
    correct = np.array([[a == "0" for a in row] for row in answers])

    def pick(q: int, subset: list[int]) -> float:
        votes = Counter(answers[q][i] for i in subset)
        most = [a for a, n in votes.items() if n == max(votes.values())]
        return float(np.mean([a == "0" for a in most]))

    np.testing.assert_allclose(majority_vote(answers, correct), over_subsets(pick), atol=1e-12)


def test_candidates_of_one_answer_may_differ() -> None:
    result = majority_vote([["a", "a", "b"]], [[1, 0, 0]])
    np.testing.assert_allclose(result, [[1 / 3, (1 / 2 + 2 * 1 / 4) / 3, 1 / 2]])


def test_sixty_four_candidates_are_exact() -> None:
    draw = np.random.default_rng(1)
    scores = draw.normal(size=(3, 64))
    correct = draw.random((3, 64)) < 0.4
    result = best_of_n(scores, correct)
    ranked = np.take_along_axis(correct, np.argsort(-scores, axis=1), 1)
    for n in (1, 2, 8, 33, 64):
        weights = [comb(63 - i, n - 1, exact=True) / comb(64, n, exact=True) for i in range(64)]
        np.testing.assert_allclose(result[:, n - 1], ranked @ weights, rtol=1e-12)
        wrong = stats.hypergeom(64, correct.sum(1), n).pmf(0)
        np.testing.assert_allclose(pass_at_n(correct, [n])[:, 0], 1 - wrong, rtol=1e-10)
    np.testing.assert_allclose(result[:, 0], correct.mean(1), rtol=1e-12)
    np.testing.assert_array_equal(result[:, 63], ranked[:, 0])


def test_a_vote_of_sixty_four_agrees_with_random_subsets() -> None:
    draw = np.random.default_rng(2)
    votes = draw.choice(5, p=[0.3, 0.28, 0.2, 0.12, 0.1], size=64)
    (result,) = majority_vote([votes.astype(str).tolist()], [votes == 0], [5, 16, 64])
    for n, exact in zip((5, 16), result, strict=False):
        won = []
        for _ in range(4_000):
            counts = np.bincount(draw.permutation(votes)[:n], minlength=5)
            won.append((counts[0] == counts.max()) / (counts == counts.max()).sum())
        assert exact == pytest.approx(np.mean(won), abs=4 * np.std(won) / np.sqrt(4_000))
    assert result[2] == pytest.approx(float(np.bincount(votes).argmax() == 0))


def test_two_answers_are_a_hypergeometric_tail() -> None:
    answers = [["a"] * 36 + ["b"] * 28]
    result = majority_vote(answers, [[1] * 36 + [0] * 28])[0]
    for n in range(1, 65):
        law = stats.hypergeom(64, 36, n)
        tie = law.pmf(n / 2) if n % 2 == 0 else 0
        assert result[n - 1] == pytest.approx(law.sf(n // 2) + tie / 2, rel=1e-9)


def test_sizes_choose_columns() -> None:
    scores, correct = drawn(4)
    everything = best_of_n(scores, correct)
    np.testing.assert_array_equal(best_of_n(scores, correct, [7, 2]), everything[:, [6, 1]])


def test_infinite_scores_rank() -> None:
    np.testing.assert_allclose(best_of_n([[-np.inf, 0, np.inf]], [[0, 0, 1]]), [[1 / 3, 2 / 3, 1]])


def test_the_interval_is_scipys_bootstrap() -> None:
    values = np.random.default_rng(3).random((200, 2))
    result = interval(values, resamples=4_000)
    for column, (low, high) in enumerate(result):
        theirs = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=4_000, method="percentile", rng=5
        ).confidence_interval
        width = theirs.high - theirs.low
        assert low == pytest.approx(theirs.low, abs=0.05 * width)
        assert high == pytest.approx(theirs.high, abs=0.05 * width)


def test_few_questions_have_no_interval() -> None:
    assert interval([[0.5]]) == interval([[0.5], [1.0], [0.0]]) == [(None, None)]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: best_of_n([[1, 2]], [[1, 0, 1]]), r"one shape; got \(1, 2\) and \(1, 3\)"),
        (lambda: best_of_n([[1, 2], [0, np.nan]], [[1, 0]] * 2), "question 1 has a NaN"),
        (lambda: best_of_n([[1, 2]], [[1, 0]], [3]), r"sizes must be 1 to 2, .* got \[3\]"),
        (lambda: pass_at_n([1, 0]), r"table of true and false, .* got the shape \(2,\)"),
        (lambda: pass_at_n([[0.5]]), "table of true and false"),
        (lambda: pass_at_n([[1]], [0]), "sizes must be 1 to 1"),
        (lambda: majority_vote([["a"]], [[1, 0]]), "answers must be 2 for each of 1 questions"),
        (lambda: majority_vote([["a"] * 1001], [[1] * 1001]), "at most 1000 candidates"),
        (lambda: interval([1.0, 2.0]), r"values must be \(questions, sizes\); got the shape \(2,"),
    ],
)
def test_bad_tables_are_named(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
