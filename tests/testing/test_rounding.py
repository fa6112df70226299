"""The hypergradient in a problem's own precision against float64, and what is said about it."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.smoothness import Sequences, Weighted
from metaopt.engine.inner_optimizers import SGD, AdamW
from metaopt.estimators import Score, Unroll
from metaopt.problems.examples import Knapsack, Quadratic
from metaopt.testing import Precision, check_precision, in_float64
from metaopt.testing.rounding import Rounding


class Overflowing(Weighted):
    def outer_loss(self, outer, inner, batch):
        return super().outer_loss(outer, inner, batch) * math.inf


def cosines(precision):
    return {row.inner_steps: row.cosine for row in precision.rows}


def test_bfloat16_is_fine_where_training_is_stable():
    precision = check_precision(Sequences(SGD(lr=0.3)), Unroll, [16])
    assert precision.dtype == "bfloat16"
    assert cosines(precision)[16] > 0.998
    assert precision.rows[-1].norm_ratio == pytest.approx(1, abs=0.01)
    assert str(precision.verdict) == "fine: bfloat16 is precise enough for this hypergradient."


@pytest.mark.slow
def test_bfloat16_is_refused_where_the_adjoint_grows():
    precision = check_precision(Sequences(SGD(lr=2.0)), Unroll, [1, 16])
    assert cosines(precision)[1] > 0.998
    assert cosines(precision)[16] < 0.8
    assert precision.verdict.level == "error"
    text = precision.verdict.text
    assert "at K = 16" in text
    assert text.index("float32 in place of bfloat16") < text.index("inner learning rate")
    assert "larger eps" not in text  # SGD has none


def test_autocast_that_the_problem_does_not_declare_is_found():
    class Undeclared(Sequences):
        compute_dtype = None

    assert check_precision(Undeclared(SGD(lr=0.3)), Unroll, [1]).dtype == "bfloat16"


@pytest.mark.slow
def test_a_larger_eps_of_adam_cures_bfloat16():
    refused = check_precision(Sequences(AdamW(lr=0.01)), Unroll)
    assert refused.verdict.level == "error"
    assert "a larger eps of the inner Adam" in refused.verdict.text
    cured = check_precision(Sequences(AdamW(lr=0.01, eps=1e-4)), Unroll)
    assert cured.verdict.level == "fine"


def test_float32_is_compared_with_the_same_batches_and_start():
    precision = check_precision(Weighted(SGD(lr=0.1)), Unroll, [4])
    assert precision.dtype == "float32"
    (row,) = precision.rows
    assert 1 - row.cosine < 1e-10
    assert row.norm_ratio == pytest.approx(1, abs=1e-4)


def test_data_in_objects_of_the_problem_is_cast_and_shared_as_before():
    class Data:
        def __init__(self, x):
            self.x, self.parts = x, [x[:2], {"rest": x[2:]}]

    class Held(Weighted):
        def __init__(self):
            super().__init__(SGD(lr=0.1))
            self.data, self.rows = Data(self.x), self.examples
            self.same = self.data

        def inner_batch(self, draw):
            return slice(0, self.rows), self.y[: self.rows]

        def losses(self, inner, batch):
            x = self.data.x[batch[0]] if isinstance(batch[0], slice) else batch[0]
            return super().losses(inner, (x, batch[1]))

    problem = Held()
    twin = in_float64(problem)
    assert twin.data is twin.same is not problem.data
    assert twin.data.x.dtype == twin.data.parts[1]["rest"].dtype == torch.float64
    assert problem.data.x.dtype == torch.float32
    assert check_precision(problem, Unroll, [2]).verdict.level == "fine"


def test_the_number_of_inner_steps_of_the_run_decides():
    rows = (Rounding(1, 0.4, 5.0), Rounding(16, 0.995, 1.0))
    assert Precision("bfloat16", rows, (), ("wait",)).verdict.level == "fine"
    skipped = Precision("bfloat16", rows, (200,), ("wait",)).verdict
    assert skipped.level == "error", "the run's own is unknown, so that the worst one counts"
    assert "at K = 1" in skipped.text
    assert Precision("bfloat16", (Rounding(4, 0.95, 1.0),), (), ()).verdict.level == "warning"
    overflown = Precision("float16", (Rounding(4, math.nan, 1.0),), (), ("wait",)).verdict
    assert overflown.level == "error"
    assert overflown.text.startswith("in float16 the hypergradient is not finite at K = 4.")


def test_long_runs_are_skipped_where_time_is_short():
    precision = check_precision(Weighted(SGD(lr=0.1)), Unroll, [1, 4, 100_000], seconds=60)
    assert precision.skipped == (100_000,)
    assert list(cosines(precision)) == [1, 4]
    assert "up to K = " in precision.verdict.text
    nothing = check_precision(Weighted(SGD(lr=0.1)), Unroll, [4], seconds=-1)
    assert nothing.verdict.level == "warning"


@pytest.mark.parametrize(
    ("problem", "make", "message"),
    [
        (Quadratic(), Unroll, "float64 already"),
        (Weighted(SGD(lr=0.1)), Score, "gives no gradient"),
        (Knapsack(), Unroll, "GradientProblem"),
        (Overflowing(SGD(lr=0.1)), Unroll, "not finite in float64 after 2 inner steps"),
    ],
)
def test_what_cannot_be_compared_is_refused(problem, make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        check_precision(problem, make, [2])


def test_a_problem_that_leaves_float64_is_refused():
    class Leaving(Weighted):
        def outer_loss(self, outer, inner, batch):
            return super().outer_loss(outer, inner, batch).float()

    with pytest.raises(ValueError, match=r"no float64 to compare with: outer_loss of Leaving"):
        check_precision(Leaving(SGD(lr=0.1)), Unroll, [2])
