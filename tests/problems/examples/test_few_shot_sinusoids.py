"""The example of few-shot learning: a task an outer step, several inner steps, no mutable state."""

import ast
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator
from metaopt.estimators import Forward, Implicit, Unroll
from metaopt.optimizers import Descent
from metaopt.testing import ProblemContract, check_hypergradient

PROGRAM = Path(__file__).parents[3] / "examples/few_shot_sinusoids.py"
SPEC = spec_from_file_location("few_shot", PROGRAM)
few_shot = module_from_spec(SPEC)
SPEC.loader.exec_module(few_shot)
Sinusoids, LearnedRates = few_shot.Sinusoids, few_shot.LearnedRates


class TestSinusoids(ProblemContract):
    @pytest.fixture
    def make(self):
        return lambda: (Sinusoids(), Unroll(3), Descent("adam", lr=1e-2))


class TestMetaBatchWithLearnedRates(ProblemContract):
    @pytest.fixture
    def make(self):
        return lambda: (LearnedRates(), Unroll(2, tasks=3), Descent("adam", lr=1e-2))


def test_a_user_writes_at_most_fifty_lines_and_keeps_nothing():
    stated = next(n for n in ast.parse(PROGRAM.read_text()).body if isinstance(n, ast.ClassDef))
    assert stated.end_lineno - stated.lineno < 50
    problem = Sinusoids()
    before = dict(vars(problem))
    loop = InnerLoop(problem)
    phi = problem.init_outer(generator(0))
    Unroll(3)(loop, phi, loop.start(phi, None, 1), 1)
    assert vars(problem) == before


def test_the_inner_and_the_outer_batch_are_of_one_task():
    problem, loops = Sinusoids(), []
    loop = InnerLoop(problem)
    phi = problem.init_outer(generator(0))
    inner = loop.start(phi, None, 0)
    for key in (3, 4):
        batches = [loop.batch(phi, inner, loop.draw(inner, key, k)) for k in range(3)]
        batches.append(loop.outer_batch(loop.outer_draw(inner, key)))
        xs, ys = zip(*batches, strict=True)
        assert not torch.equal(xs[0], xs[1])
        assert not torch.equal(xs[0], xs[3])
        # y = a sin x + b cos x of one (a, b) for all points of the outer step
        x, y = torch.cat(xs).double(), torch.cat(ys).double()
        waves = torch.cat([x.sin(), x.cos()], 1)
        weights = torch.linalg.lstsq(waves, y).solution
        assert (waves @ weights - y).abs().max() < 1e-5
        loops.append(weights)
    assert not torch.allclose(*loops)


@pytest.mark.parametrize("problem", [Sinusoids, LearnedRates])
def test_its_hypergradient_is_exact(problem):
    rows = check_hypergradient(
        problem(), {"unroll": Unroll(5), "cg": Implicit(inner_steps=5)}, reference_steps=5
    )
    unroll, cg = rows
    assert unroll.error < 1e-4
    assert "holds theta_0 fixed" in cg.refused


def test_forward_says_that_phi_is_too_large():
    with pytest.raises(ValueError, match="estimator=unroll"):
        Forward(5).check(InnerLoop(Sinusoids()))


@pytest.mark.slow
def test_the_start_that_is_learned_adapts_in_five_steps():
    first, last = few_shot.main(outer_steps=300, tasks=8)
    assert last < 0.5 * first
    assert few_shot.main(outer_steps=300, tasks=8, problem=LearnedRates)[1] < last
