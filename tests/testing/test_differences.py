"""Differences of whole runs: right where the answer is known, and honest about their own error."""

import ast
import math
from pathlib import Path

import pytest
import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import generator
from metaopt.problems.examples import Quadratic, Ridge
from metaopt.testing import differences, run_differences


class Line(GradientProblem):
    """g = (theta - phi)^2 / 2 and F = read(theta): theta_1 = theta_0 + lr (phi - theta_0)."""

    inner_optimizer = SGD(lr=0.25)

    def __init__(self, read=torch.sin, fork=False, dtype=torch.float64):
        self.read, self.warm_start, self.dtype = read, not fork, dtype

    def init_outer(self, generator):
        return {"phi": torch.tensor([0.3, -2.0], dtype=self.dtype)}

    def init_params(self, outer, generator):
        return {"theta": 3 * outer["phi"] if not self.warm_start else torch.ones_like(outer["phi"])}

    def inner_batch(self, draw):
        return None

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        return ((inner["theta"] - outer["phi"]) ** 2).sum() / 2

    def outer_loss(self, outer, inner, batch):
        return self.read(inner["theta"]).sum()


def difference(problem, steps):
    loop, outer = InnerLoop(problem), problem.init_outer(generator(0))
    inner = loop.start(outer, None, 0)
    before = tree.clone(inner)
    result = run_differences(loop, outer, inner, 0, steps, directions=4)
    assert torch.equal(before.params["theta"], inner.params["theta"])
    return result, outer["phi"]


@pytest.mark.parametrize("fork", [False, True])
def test_a_run_in_closed_form(fork):
    result, phi = difference(Line(fork=fork), 3)
    rest = 0.75**3
    theta = rest * (3 * phi if fork else 1.0) + (1 - rest) * phi
    exact = {"phi": theta.cos() * ((3 * rest if fork else 0.0) + 1 - rest)}
    assert result.uncertainty < 1e-8
    assert result.distance(exact) < 1e-8
    assert result.distance(tree.scale(exact, -1.0)) == pytest.approx(2.0)
    # An error in one entry alone shows as well.
    exact["phi"][1] *= 1.01
    assert result.distance(exact) > 1e-4


@pytest.mark.slow
def test_a_run_to_the_solution_is_the_closed_form_of_ridge():
    problem = Ridge(inner_optimizer=SGD(lr=0.8))
    loop, outer = InnerLoop(problem), problem.init_outer(generator(0))
    inner = loop.run(outer, loop.start(outer, None, 0), 0, 800)
    exact = {"log_penalty": problem.hypergradient(outer)["log_penalty"]}
    assert run_differences(loop, outer, inner, 0, 800, 1).distance(exact) < 1e-6


@pytest.mark.parametrize("read", [lambda t: (1000 * t).floor(), lambda t: (t * 1e7).sin()])
def test_what_is_not_smooth_has_a_large_error_of_its_own(read):
    result, _ = difference(Line(read), 2)
    assert result.uncertainty > 0.1


def test_radii_that_leave_the_domain_are_passed_over():
    edge = 1 - 0.25 + 0.25 * torch.tensor([0.3, -2.0], dtype=torch.float64) - 1e-3
    result, phi = difference(Line(lambda t: (t - edge).sqrt()), 1)
    assert result.distance({"phi": 0.25 * 0.5 / math.sqrt(1e-3) + 0 * phi}) < 1e-3


def test_a_zero_slope_is_zero_and_anything_else_infinitely_far():
    result, phi = difference(Line(lambda t: 0 * t), 1)
    assert result.slopes == [0.0] * 4
    assert result.distance({"phi": 0 * phi}) == 0.0
    assert result.distance({"phi": phi}) == math.inf


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        (Line(dtype=torch.float32), "outer variable 'phi' of Line is torch.float32"),
        (Line(torch.Tensor.float), "outer_loss of Line is torch.float32"),
    ],
)
def test_anything_but_float64_is_refused(problem, name):
    with pytest.raises(ValueError, match=name):
        difference(problem, 1)


def test_random_directions_tell_more_than_one():
    problem = Quadratic()
    loop, outer = InnerLoop(problem), problem.init_outer(generator(0))
    result = run_differences(loop, outer, loop.start(outer, None, 0), 0, 1)
    first, second = (torch.cat([t.flatten() for t in d.values()]) for d in result.directions)
    assert torch.cosine_similarity(first, second, 0).abs() < 0.99


def test_no_code_of_an_estimator_is_in_it():
    source = ast.parse(Path(differences.__file__).read_text())
    modules = [n.module for n in ast.walk(source) if isinstance(n, ast.ImportFrom)]
    assert not [m for m in modules if m.startswith("metaopt.estimators")]
