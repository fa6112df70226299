"""What betty-ml gets wrong, shown on betty itself, and that its two levels here do not."""

from __future__ import annotations

import warnings

import pytest
import torch
from betty_cases import ROWS, Reweighting, descent, error, gradient, solved
from torch import nn

from metaopt.backends.betty import BettyEngine, BettyHypergradient
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import generator
from metaopt.estimators import FiniteDifference, Identity, Implicit
from metaopt.problems.examples import Ridge

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    betty_problems = pytest.importorskip("betty.problems")
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine as RawEngine


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
        self.grads = [p.grad.clone() for p in self.module.parameters()]


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
    without = raw_betty(Reweighting(SGD(lr=0.1)), exact)[1].grads
    grads = raw_betty(Reweighting(SGD(lr=0.1), dropout=dropout))[1].grads
    names = [str(i) for i in range(len(without))]
    return error(dict(zip(names, grads, strict=True)), dict(zip(names, without, strict=True)))


class Failing(Reweighting):
    calls = 0

    def inner_loss(self, outer, inner, batch):
        self.calls += 1
        if self.calls == 3:
            raise KeyError("third")
        return super().inner_loss(outer, inner, batch)


def test_darts_is_the_exact_product_up_to_its_radius():
    problem = Ridge()
    phi, inner = solved(problem, 300)
    exact = gradient(Implicit(Identity()), problem, phi, inner)
    assert (
        error(gradient(BettyHypergradient("darts", alpha=1e-3), problem, phi, inner), exact) < 1e-9
    )


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
    state, _ = BettyHypergradient("darts")(InnerLoop(stepped), phi, tree.clone(state), 3)
    assert all(torch.equal(state.params[k], v) for k, v in expected.params.items())


def test_parameters_come_back_after_an_exception():
    problem = Failing(SGD(lr=0.0))
    phi = problem.init_outer(generator(0))
    state = InnerLoop(problem).start(phi, None, 0)
    before = tree.clone(state.params)
    with pytest.raises(KeyError, match="third"):
        BettyHypergradient("darts")(InnerLoop(problem), phi, state, 3)
    assert all(torch.equal(state.params[k], v) for k, v in before.items())


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
