"""betty-ml as an independent oracle, and each of its faults shown on betty itself."""

from __future__ import annotations

import functools
import re
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metaopt import backends
from metaopt.backends.betty import BettyEngine, BettyHypergradient, translate
from metaopt.engine import Engine, tree
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW, StepDecay
from metaopt.engine.random import generator
from metaopt.estimators import (
    ConjugateGradient,
    Exact,
    Identity,
    Implicit,
    Neumann,
    Score,
    Unroll,
)
from metaopt.estimators.finite_difference import FiniteDifference
from metaopt.optimizers.descent import Descent
from metaopt.problems.examples import Ridge

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    betty_problems = pytest.importorskip("betty.problems")
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine as RawEngine

ROWS, FEATURES, CLASSES = 40, 6, 3


class Reweighting(GradientProblem):
    """Meta-Weight-Net on noisy labels: a small network weighs each row by its detached loss."""

    def __init__(self, inner_optimizer, dropout=0.0, norm=False, spare=False):
        self.inner_optimizer = inner_optimizer
        draw = generator(1)
        self.x = torch.randn(2 * ROWS, FEATURES, generator=draw, dtype=torch.float64)
        self.y = torch.randint(CLASSES, (2 * ROWS,), generator=draw)
        torch.manual_seed(2)
        middle = [nn.BatchNorm1d(16)] if norm else []
        self.model = nn.Sequential(
            nn.Linear(FEATURES, 16), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, CLASSES)
        ).double()
        if spare:
            self.model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
        self.weigher = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def init_outer(self, generator):
        return split_module(self.weigher)[0]

    def init_params(self, outer, generator):
        return split_module(self.model)[0]

    def init_buffers(self, outer, params):
        return split_module(self.model)[1]

    def inner_batch(self, draw):
        return torch.randint(ROWS, (20,), generator=draw.generator)

    def outer_batch(self, draw):
        return ROWS + torch.randint(ROWS, (20,), generator=draw.generator)

    def losses(self, inner, rows):
        logits = functional_call(self.model, inner, self.x[rows])
        return nn.functional.cross_entropy(logits, self.y[rows], reduction="none")

    def inner_loss(self, outer, inner, batch):
        losses = self.losses(inner, batch)
        weights = functional_call(self.weigher, outer, losses.detach()[:, None]).sigmoid()
        return (weights[:, 0] * losses).mean()

    def outer_loss(self, outer, inner, batch):
        direct = sum((p**2).sum() for p in outer.values())
        return self.losses(inner, batch).mean() + 1e-3 * direct


class RawLower(betty_problems.ImplicitProblem):
    """The inner level of `Reweighting`, written as betty's tutorials write it."""

    def __init__(self, source, config, optimizer=None, scheduler=None):
        model = source.model
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
        super().__init__(
            "classifier", config, module=model, optimizer=optimizer, scheduler=scheduler
        )
        self.source = source

    def get_batch(self):
        return torch.arange(ROWS)

    def training_step(self, batch):
        losses = nn.functional.cross_entropy(
            self.module(self.source.x[batch]), self.source.y[batch], reduction="none"
        )
        weights = self.reweight(losses.detach()[:, None]).sigmoid()
        return (weights[:, 0] * losses).mean()


class RawUpper(betty_problems.ImplicitProblem):
    """The outer level; it keeps betty's hypergradient and does not move."""

    def __init__(self, source, config):
        idle = torch.optim.SGD(source.weigher.parameters(), lr=0.0)
        super().__init__("reweight", config, module=source.weigher, optimizer=idle)
        self.source = source

    def get_batch(self):
        return torch.arange(ROWS, 2 * ROWS)

    def training_step(self, batch):
        self.before = [p.detach().clone() for p in self.classifier.module.parameters()]
        logits = self.classifier(self.source.x[batch])
        return nn.functional.cross_entropy(logits, self.source.y[batch])

    def grad_callback(self):
        self.found = [p.grad.clone() for p in self.module.parameters()]


def raw_betty(source, config=None, **lower):
    """Return betty's two problems after one inner step and one hypergradient."""
    below = RawLower(source, config or Config(), **lower)
    above = RawUpper(source, Config(retain_graph=True))
    dependencies = {"u2l": {above: [below]}, "l2u": {below: [above]}}
    engine = RawEngine(
        problems=[above, below], config=EngineConfig(strategy="cpu"), dependencies=dependencies
    )
    engine.train()
    engine.train_step()
    return below, above


def raw_error(dropout):
    """Return the error of betty's own darts against the exact product without dropout."""
    exact = Config(type="neumann", neumann_iterations=0)
    wanted = raw_betty(Reweighting(SGD(lr=0.1)), exact)[1].found
    found = raw_betty(Reweighting(SGD(lr=0.1), dropout=dropout))[1].found
    names = [str(i) for i in range(len(wanted))]
    return error(dict(zip(names, found, strict=True)), dict(zip(names, wanted, strict=True)))


def solved(problem, steps):
    """Return phi and the inner solution."""
    phi = problem.init_outer(generator(0))
    return phi, InnerLoop(problem).run(phi, InnerLoop(problem).start(phi, None, 0), 0, steps)


def gradient(estimator, problem, phi, inner, key=3):
    return estimator(InnerLoop(problem), phi, tree.clone(inner), key)[1].grad


def error(found, wanted):
    return float(tree.norm(tree.add(found, wanted, -1.0)) / tree.norm(wanted))


def descent(lr=0.05):
    return Descent(functools.partial(torch.optim.Adam, lr=lr))


def both(problem, estimator, steps=4):
    """Return metaopt's and betty's engine after the same number of outer steps."""
    ours = Engine(problem, estimator, descent(), outer_steps=steps, seed=5)
    theirs = BettyEngine(problem, estimator, descent(), outer_steps=steps, seed=5)
    gradients = [(f.grad, g.grad) for (_, f), (_, g) in zip(list(ours), list(theirs), strict=True)]
    return ours, theirs, gradients


SOLVES = [Identity(), Neumann(1, 0.25), Neumann(8, 0.125)]


@pytest.mark.parametrize("solve", SOLVES, ids=["identity", "one term", "eight terms"])
def test_ridge_agrees_to_round_off(solve):
    ours, theirs, gradients = both(Ridge(), Implicit(solve, inner_steps=3))
    assert all(error(g, f) < 1e-11 for f, g in gradients)
    assert error(theirs.inner.params, ours.inner.params) < 1e-11


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(lr=0.1, momentum=0.9, nesterov=True, clip_norm=0.5),
        SGD(lr=0.1, groups=[{"match": "^0", "lr": 0.01}]),
        Adam(lr=1e-2, schedule=StepDecay([4], 0.1)),
        AdamW(lr=1e-2, weight_decay=0.1),
    ],
    ids=["clipped nesterov", "groups", "scheduled adam", "adamw"],
)
def test_a_network_agrees_under_every_inner_optimizer(optimizer):
    problem = Reweighting(optimizer, dropout=0.3, norm=True)
    ours, theirs, gradients = both(problem, Implicit(Neumann(4, 0.125), inner_steps=3))
    assert all(error(g, f) < 1e-9 for f, g in gradients)
    assert error(theirs.inner.params, ours.inner.params) < 1e-9
    assert theirs.inner.step == ours.inner.step == 12
    assert theirs.ledger.spent["inner_steps"] == ours.ledger.spent["inner_steps"]


def test_darts_is_the_exact_product_up_to_its_radius():
    problem = Ridge()
    phi, inner = solved(problem, 300)
    exact = gradient(Implicit(Identity()), problem, phi, inner)
    assert (
        error(gradient(BettyHypergradient("darts", alpha=1e-3), problem, phi, inner), exact) < 1e-9
    )


def test_betty_cannot_solve_where_we_can():
    problem = Ridge(inner_optimizer=SGD(lr=0.8))
    phi, inner = solved(problem, 750)
    closed = problem.hypergradient(phi)
    ours = Implicit(ConjugateGradient(20, damping=0.0, tolerance=0.0))
    betty = {n: error(gradient(BettyHypergradient("cg", n), problem, phi, inner), closed)
             for n in (1, 10, 20)}  # fmt: skip
    assert error(gradient(ours, problem, phi, inner), closed) < 1e-6
    assert betty[20] > betty[10] > 0.5, "betty's fault is gone: translate ConjugateGradient"
    with pytest.raises(ValueError, match="engine=metaopt"):
        translate(ours)


@pytest.mark.slow
def test_bettys_default_step_diverges_and_ours_is_passed_on():
    problem = Ridge(spread=1.0, rows=30, features=20, inner_optimizer=SGD(lr=0.4))
    phi, inner = solved(problem, 1500)
    closed = problem.hypergradient(phi)
    steep = float(torch.linalg.eigvalsh(problem.hessian(phi))[-1])
    assert steep > 2
    default = gradient(BettyHypergradient("neumann", 20), problem, phi, inner)
    passed = translate(Implicit(Neumann(2000, 1 / steep)))
    assert error(default, closed) > 1
    assert error(gradient(passed, problem, phi, inner), closed) < 1e-6
    with pytest.raises(ValueError, match="cannot find a step"):
        translate(Implicit(Neumann(20)))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_darts_keeps_masks_and_detached_values(dropout):
    problem = Reweighting(SGD(lr=0.1), dropout=dropout)
    phi, inner = solved(problem, 20)
    exact = gradient(Implicit(Identity()), problem, phi, inner)
    assert (
        error(gradient(BettyHypergradient("darts", alpha=1e-3), problem, phi, inner), exact) < 1e-4
    )


def test_raw_betty_differentiates_through_detach_and_redraws_masks():
    assert raw_error(dropout=0.0) > 0.1
    assert raw_error(dropout=0.1) > 1.0


def test_a_finite_difference_keeps_its_radius():
    problem = Reweighting(SGD(lr=0.1), dropout=0.1)
    _, _, gradients = both(problem, FiniteDifference(epsilon=1e-2, inner_steps=2))
    assert all(error(g, f) < 1e-9 for f, g in gradients)
    _, _, gradients = both(problem, FiniteDifference())
    assert all(error(g, f) < 1e-6 for f, g in gradients)


def test_buffers_move_with_the_inner_steps_only():
    raw, _ = raw_betty(Reweighting(SGD(lr=0.1), norm=True))
    assert raw.module[1].num_batches_tracked == 4
    source = Reweighting(SGD(lr=0.1), norm=True)
    engine = BettyEngine(source, FiniteDifference(inner_steps=3), descent(), outer_steps=2)
    list(engine)
    assert engine.inner.buffers["1.num_batches_tracked"] == 6


def test_parameters_come_back_bit_for_bit():
    raw, above = raw_betty(Reweighting(SGD(lr=0.1)))
    stepped = Reweighting(SGD(lr=0.1))
    state = InnerLoop(stepped).start(stepped.init_outer(generator(0)), None, 0)
    displaced = [p.detach() for p in raw.module.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(displaced, above.before, strict=True))

    phi = stepped.init_outer(generator(0))
    expected = InnerLoop(stepped).run(phi, tree.clone(state), 3, 1)
    found, _ = BettyHypergradient("darts")(InnerLoop(stepped), phi, tree.clone(state), 3)
    assert all(torch.equal(found.params[k], v) for k, v in expected.params.items())


def test_parameters_come_back_after_an_exception():
    problem = Failing(SGD(lr=0.0))
    phi = problem.init_outer(generator(0))
    state = InnerLoop(problem).start(phi, None, 0)
    before = tree.clone(state.params)
    with pytest.raises(KeyError, match="third"):
        BettyHypergradient("darts")(InnerLoop(problem), phi, state, 3)
    assert all(torch.equal(state.params[k], v) for k, v in before.items())


class Failing(Reweighting):
    calls = 0

    def inner_loss(self, outer, inner, batch):
        self.calls += 1
        if self.calls == 3:
            raise KeyError("third")
        return super().inner_loss(outer, inner, batch)


def test_raw_betty_loses_what_the_inner_optimizer_knows():
    def model():
        return Reweighting(SGD(lr=0.1))

    source = model()
    with pytest.raises(TypeError):
        raw_betty(source, optimizer=torch.optim.AdamW(source.model.parameters()))

    source = model()
    groups = [{"params": [p], "lr": 0.1 * i} for i, p in enumerate(source.model.parameters(), 1)]
    raw, _ = raw_betty(source, optimizer=torch.optim.SGD(groups, lr=1.0))
    assert [g["lr"] for g in raw.optimizer.param_groups] == [1.0]

    source = model()
    optimizer = torch.optim.SGD(source.model.parameters(), lr=0.1)
    with pytest.raises(AttributeError):
        raw_betty(
            source, optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
        )  # fmt: skip


def test_a_resumed_run_is_bitwise_equal():
    def engine():
        problem = Reweighting(Adam(lr=1e-2), dropout=0.2, norm=True)
        return BettyEngine(problem, FiniteDifference(inner_steps=2), descent(), outer_steps=4)

    whole, first, second = engine(), engine(), engine()
    list(whole)
    steps = iter(first)
    next(steps)
    next(steps)
    second.load_state_dict(tree.clone(first.state_dict()))
    list(second)
    for found, wanted in [
        (second.inner.params, whole.inner.params),
        (second.optimizer.solution, whole.optimizer.solution),
    ]:
        assert all(torch.equal(found[k], v) for k, v in wanted.items())


@pytest.mark.parametrize("estimator", [Unroll(2), Score(), Implicit(Exact())])
def test_what_betty_has_not_is_refused(estimator):
    with pytest.raises(ValueError, match="engine=metaopt"):
        BettyEngine(Ridge(), estimator, descent(), outer_steps=1)


def test_the_advice_works_as_typed(metaopt):
    ridge = ["problem=ridge", "engine=betty", "debug=tiny", "figures=false"]
    refused = metaopt(*ridge)
    assert refused.code == 1
    options = re.findall(r"estimator=\w+(?: estimator\.\S+)?", refused.err)
    assert len(options) == 3
    for option in options:
        done = metaopt(*ridge, *option.split())
        assert done.code == 0, done.err
    assert "estimator.solve.step=" in metaopt(*ridge, "estimator=implicit_neumann").err


def test_a_problem_without_gradients_is_refused():
    with pytest.raises(TypeError, match="GradientProblem"):
        BettyEngine(object(), Implicit(Identity()), descent(), outer_steps=1)


def test_an_unused_inner_parameter_is_refused_where_betty_crashes():
    problem = Reweighting(SGD(lr=0.1), spare=True)
    with pytest.raises(ValueError, match="without curvature: spare"):
        BettyEngine(problem, Implicit(Identity()), descent(), outer_steps=1)
    _, _, gradients = both(problem, FiniteDifference())
    assert all(error(g, f) < 1e-6 for f, g in gradients)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"type": "reinforce"}, "type"), ({"type": "cg", "iterations": 0}, "iterations"),
     ({"type": "darts", "inner_steps": 0}, "inner_steps")],
)  # fmt: skip
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        BettyHypergradient(**settings)


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.delattr(backends, "betty_levels")
    monkeypatch.setitem(sys.modules, "metaopt.backends.betty_levels", None)
    with pytest.raises(ImportError, match=r"pip install .*betty-ml"):
        BettyHypergradient("darts")


def test_nothing_is_printed(capsys):
    list(BettyEngine(Ridge(), Implicit(Identity()), descent(), outer_steps=2))
    assert capsys.readouterr() == ("", "")
