"""Templates round-trip as texts; objectives reward what their papers say they reward."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from metaopt.llm.rubric import HIGH, LOW, Rubric, parse, round_score, unit
from metaopt.problems.template_evolution.objectives import OBJECTIVES, alignment, outer_loss


@pytest.mark.parametrize(
    "rubric",
    [
        Rubric({"clarity": 1.0, "right numbers": -2.25}, 0.5),
        Rubric({"clarity": 0.0}, -9.99, "Grade it."),
        Rubric({"a": 0.01, "b": -0.01, "c": 9.99}),
    ],
)
def test_a_rubric_survives_its_text(rubric):
    text = rubric.render()
    assert parse(text) == rubric
    assert parse(text).render() == text
    assert text.splitlines()[-1] == "End with one line: Score: <number>"


def test_weights_are_cut_and_never_minus_zero():
    text = Rubric({"a": 123.0, "b": -0.004, "c": -123.0}).render()
    assert "- a: +9.99" in text
    assert "- b: +0.00" in text
    assert "- c: -9.99" in text


@pytest.mark.parametrize("text", ["", "Be kind.", "- clarity: +1.00", "Strictness: +0.00"])
def test_a_text_without_criteria_or_strictness_is_no_rubric(text):
    with pytest.raises(ValueError, match="a rubric needs lines such as"):
        parse(text)


def test_scores_lie_on_the_grid():
    assert [round_score(s) for s in (-3.0, 1.2, 1.3, 7.74, 11.0)] == [1.0, 1.0, 1.5, 7.5, 10.0]
    assert (unit(LOW), unit(5.5), unit(HIGH)) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("score", "outcome", "expected"),
    [(1.0, 0, 100.0), (10.0, 0, 0.0), (5.5, 0, 50.0), (8.0, 1, 77.8), (10.0, 1, 100.0)],
)
def test_alignment_has_the_papers_values(score, outcome, expected):
    assert alignment(np.array([unit(score)]), np.array([outcome])) == pytest.approx(
        expected, abs=0.05
    )


def test_alignment_rewards_a_judge_that_always_fails():
    """At 4 % successes the constant judge scores 96, an informative one less."""
    y = np.array([1] * 4 + [0] * 96)
    constant, informative = np.zeros(100), np.where(y == 1, 0.9, 0.4)
    assert alignment(constant, y) == pytest.approx(96)
    assert alignment(informative, y) < alignment(constant, y)
    for name in ("balanced", "balanced_brier", "auroc"):
        assert outer_loss(name, informative, y) < outer_loss(name, constant, y)


def test_objectives_agree_with_scikit_learn():
    draw = np.random.default_rng(0)
    p, y = draw.integers(0, 19, 200) / 18, draw.integers(0, 2, 200)
    assert outer_loss("auroc", p, y) == pytest.approx(1 - roc_auc_score(y, p))
    assert outer_loss("brier", p, y) == pytest.approx(brier_score_loss(y, p))


def test_balanced_objectives_weigh_both_classes_alike():
    p, y = np.array([0.5, 0.0, 0.0, 0.0]), np.array([1, 0, 0, 0])
    assert outer_loss("mae", p, y) == pytest.approx(0.125)
    assert outer_loss("balanced", p, y) == pytest.approx(0.25)
    assert outer_loss("balanced", p[1:], y[1:]) == 0.0


def test_the_area_is_undecided_for_one_class():
    assert outer_loss("auroc", np.array([0.1, 0.9]), np.array([0, 0])) == 0.5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_perfect_judge_is_best(name):
    draw = np.random.default_rng(1)
    y = draw.integers(0, 2, 50)
    best = outer_loss(name, y.astype(float), y)
    assert best == 0
    assert all(outer_loss(name, draw.random(50), y) > best for _ in range(20))
    assert math.isfinite(best)
