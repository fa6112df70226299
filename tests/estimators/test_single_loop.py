"""SOBA, SABA and SRBA against plain numpy on the same batches, and what they refuse."""

import numpy as np
import pytest
import torch
from seeds import assert_as_alone
from torch._subclasses import FakeTensorMode

from benchmarks import numpy_solvers
from metaopt.engine import Engine, distributed, tree
from metaopt.engine.finite import Finite
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import Draw, fold
from metaopt.engine.schedules import PowerDecay
from metaopt.estimators import Saba, Soba, Srba
from metaopt.estimators.srba import of_blocks
from metaopt.optimizers import Descent
from metaopt.problems.examples import Ridge, StochasticQuadratic

PERIOD = 7


def small(kind=StochasticQuadratic, **settings):
    return kind(128, 48, 8, 3, batch=8, mu=0.5, **settings)


def stepped(problem, estimator, steps, lr=0.1):
    """Return phi, the inner state, the last feedback, and the blocks (i, j) of each step."""
    loop, outer, blocks = InnerLoop(problem), problem.init_outer(None), []
    inner, feedback = loop.start(outer, None, 0), None
    for t in range(steps):
        loop.outer_step = t
        draws = loop.draw(inner, t, 0), loop.outer_draw(inner, t)
        blocks.append(tuple(int(loop.blocks(draw)) for draw in draws))
        inner, feedback = estimator(loop, outer, inner, t)
        outer = tree.add(outer, feedback.grad, -lr)
    return outer, inner, feedback, blocks


METHODS = {
    "soba": (Soba, numpy_solvers.soba, False),
    "saba": (Saba, numpy_solvers.saba, False),
    "saba, with replacement": (Saba, numpy_solvers.saba, True),
    "srba": (lambda: Srba(period=PERIOD), lambda d: numpy_solvers.srba(d, PERIOD), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_equals_plain_numpy_on_the_same_batches(name):
    make, directions, replacement = METHODS[name]
    problem = small(replacement=replacement)
    outer, inner, _, blocks = stepped(problem, make(), 200)
    w, z = numpy_solvers.run(problem, directions(numpy_solvers.Quadratics(problem)), blocks, 0.1)
    np.testing.assert_allclose(outer["w"].numpy(), w, rtol=1e-10)
    np.testing.assert_allclose(inner.params["z"].numpy(), z, rtol=1e-10)


def at_fixed_variables(estimator, steps):
    """Return what steps of length 0 leave, with the data and the point (z, q, w) in numpy."""
    problem = small(inner_optimizer=SGD(lr=0.0))
    draw = torch.Generator().manual_seed(0)
    q, z = torch.randn(2, 8, generator=draw, dtype=torch.float64)
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    inner = loop.start(outer, None, 0)._replace(params={"z": z})
    estimator._q = {"z": q}
    for t in range(steps):
        loop.outer_step = t
        inner, feedback = estimator(loop, outer, inner, t)
    return problem, numpy_solvers.Quadratics(problem), (z, q, outer["w"]), feedback, loop, inner


@pytest.mark.parametrize("make", [Saba, lambda step: Srba(step, period=5)])
def test_after_a_pass_at_fixed_variables_the_directions_are_those_of_all_data(make):
    estimator = make(step=1e-300)  # q stays where it is, to the bit
    _, data, point, feedback, *_ = at_fixed_variables(estimator, small().inner_batches + 1)
    terms = [torch.tensor(t) for t in data.terms([p.numpy() for p in point], None, None)]
    _, product, cross, v, direct = terms
    torch.testing.assert_close(feedback.grad["w"], direct - cross, rtol=1e-12, atol=1e-14)
    residual = (product - v).norm() / v.norm()
    torch.testing.assert_close(feedback.metrics["solve/residual"], residual, rtol=1e-12, atol=0.0)


def test_saba_steps_theta_along_the_whole_gradient_after_a_pass():
    estimator, blocks = Saba(step=1e-300), small().inner_batches
    problem, data, (z, q, w), _, loop, inner = at_fixed_variables(estimator, blocks)
    problem.inner_optimizer = SGD(lr=1.0)
    inner, _ = estimator(loop, {"w": w}, inner._replace(params={"z": z.clone()}), blocks)
    slope = data.terms((z.numpy(), q.numpy(), w.numpy()), None, None)[0]
    torch.testing.assert_close(z - inner.params["z"], torch.tensor(slope), rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_variance_reduction_converges_where_soba_stalls():
    def squared(estimator):
        outer, *_ = stepped(small(), estimator, 800)
        return float(small().hypergradient(outer)["w"].square().sum())

    stalled = squared(Soba())
    assert squared(Saba()) < 1e-3 * stalled
    assert squared(Srba()) < 1e-3 * stalled


@pytest.mark.slow
@pytest.mark.parametrize("make", [Saba, lambda: Srba(period=3), lambda: Soba(average=0.5)])
def test_each_seed_has_directions_of_its_own(make):
    assert_as_alone(
        lambda seed: small(seed=seed), make, lambda: Descent("sgd", lr=0.1), steps=5, rtol=1e-9
    )


def test_a_pass_over_all_data_logs_the_losses_of_its_own_batches():
    loop, outer = InnerLoop(small()), small().init_outer(None)
    feedbacks = [
        estimator(loop, outer, loop.start(outer, None, 0), 4)[1] for estimator in (Srba(), Soba())
    ]
    values = [feedback.value for feedback in feedbacks]
    assert torch.equal(*values)
    assert torch.equal(*(feedback.metrics["inner/loss"] for feedback in feedbacks))


def test_a_pass_over_all_data_takes_losses_from_where_they_are():
    with FakeTensorMode():  # which has devices that the machine has not
        losses = [torch.ones((), device="cuda"), torch.ones((), device="cuda")]
        assert of_blocks(losses, torch.tensor(1)).device.type == "cuda"
    losses = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    assert of_blocks(losses, torch.tensor([1, 0])).tolist() == [3.0, 2.0]


def test_a_moving_average_of_the_hypergradient():
    loop, outer = InnerLoop(small()), small().init_outer(None)
    plain, averaged = Soba(), Soba(average=0.25)
    one = two = loop.start(outer, None, 0)
    mean = None
    for t in range(4):
        one, feedback = plain(loop, outer, tree.clone(one), t)
        two, smooth = averaged(loop, outer, tree.clone(two), t)
        grad = feedback.grad["w"]
        mean = grad if mean is None else 0.75 * mean + 0.25 * grad
        torch.testing.assert_close(smooth.grad["w"], mean, rtol=1e-14, atol=0.0)


def test_the_adjoint_has_a_schedule_of_its_own():
    problem = small(inner_optimizer=SGD(lr=0.1, schedule=PowerDecay(0.5)))
    follows, own = Soba(), Soba(step=0.1, schedule=PowerDecay(0.5))
    states = [stepped(problem, estimator, 4)[0]["w"] for estimator in (follows, own)]
    torch.testing.assert_close(*states, rtol=1e-14, atol=0.0)
    assert not torch.equal(states[0], stepped(problem, Soba(step=0.1), 4)[0]["w"])


def engine(problem, estimator):
    return Engine(problem, estimator, Descent(), outer_steps=1)


class Partition(Finite):
    inner_batches, outer_batches, warm_start = 50, 5, True
    init_outer = init_params = inner_loss = outer_loss = None
    inner_batch_at = outer_batch_at = None


def test_blocks_follow_the_run_where_epochs_have_no_seed():
    def blocks(key, epoch_seed=None):
        problem = Partition()
        if epoch_seed is not None:
            problem.epoch_seed = epoch_seed
        return [problem.block(Draw(fold(key, t), total_inner_step=t)) for t in range(50)]

    assert blocks(0) != blocks(1)
    assert len(set(blocks(0))) < 50
    assert blocks(0, epoch_seed=0) == blocks(1, epoch_seed=0) != blocks(0, epoch_seed=1)
    assert sorted(blocks(0, epoch_seed=0)) == list(range(50))


class Shuffled(StochasticQuadratic):
    def inner_batch(self, draw):
        return self.inner_batch_at(0)


class Prepared(StochasticQuadratic):
    def prepare_batch(self, outer, inner, batch, draw):
        return batch


@pytest.mark.parametrize("estimator", [Saba(), Srba()])
def test_batches_without_an_identity_are_refused(estimator, monkeypatch):
    name = type(estimator).__name__
    with pytest.raises(TypeError, match=f"{name} has to know which batch .* Ridge says nothing"):
        engine(Ridge(), estimator)
    with pytest.raises(ValueError, match=r"Shuffled.inner_batch replaces that of Finite"):
        engine(small(Shuffled), estimator)
    with pytest.raises(ValueError, match=r"Prepared.prepare_batch adds to them"):
        engine(small(Prepared), estimator)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "mean", lambda values: values)
    monkeypatch.setattr(distributed, "on_any_rank", lambda flags, like: flags)
    with pytest.raises(ValueError, match="ranks=split"):
        estimator.check(InnerLoop(small()))


def test_bad_settings_are_named():
    for make, name in [
        (lambda: Saba(step=0.0), "step"),
        (lambda: Soba(average=1.5), "average"),
        (lambda: Srba(period=0), "period"),
        (lambda: Soba(schedule=PowerDecay(0.5)), "set step"),
        (lambda: PowerDecay(-1.0), "exponent"),
    ]:
        with pytest.raises(ValueError, match=name):
            make()
