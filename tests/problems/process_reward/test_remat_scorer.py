"""Rematerialised layers of a scorer against the same layers with all activations kept."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tiny_process_rewards import CHAINS, SOURCE, frozen
from torch.func import functional_call

from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import generator, replay
from metaopt.estimators import FiniteDifference, Unroll
from metaopt.problems.process_reward.model.aggregation import step_loss
from metaopt.problems.process_reward.model.scorer import TransformerScorer

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]}
DROPPING = {**SOURCE, "attention_dropout": 0.2}
BOTH = (None, r"layers\.\d+$")


def scorers(**settings):
    return [TransformerScorer(CHAINS, DROPPING, remat=pattern, **settings) for pattern in BOTH]


def losses(scorer, tensors, train=True):
    steps = scorer.encode(CHAINS * 2)
    labels = torch.rand(steps.mask.shape, generator=generator(1))
    return step_loss(scorer.logits(tensors, steps, train), labels, steps.mask)


def leaves(tensors):
    return {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}


def slopes(loss, tensors, **settings):
    return torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True, **settings)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"lora": LORA}, {"precision": "master"}, {"head": "vocabulary"}], ids=str
)
def test_losses_and_gradients_are_the_same_and_less_is_kept(settings, train):
    runs = []
    for scorer in scorers(**settings):
        params = leaves(scorer.init(generator(0))[0])
        storages = {}

        def keep(x, storages=storages):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with replay(3), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = losses(scorer, params, train)
        weights = {
            p.untyped_storage().data_ptr() for p in (*params.values(), *frozen(scorer).values())
        }
        size = sum(v for k, v in storages.items() if k not in weights)
        runs.append((loss, *slopes(loss.sum(), params), torch.tensor(size)))
    (*plain, more), (*remat, less) = runs
    assert all(map(torch.equal, plain, remat))
    assert less < 0.6 * more


def test_dropout_is_drawn_once():
    _, scorer = scorers()
    params = leaves(scorer.init(generator(0))[0])
    torch.manual_seed(3)
    loss = losses(scorer, params)
    after = torch.get_rng_state()
    assert not torch.equal(loss, losses(scorer, params))
    torch.set_rng_state(after)
    slopes(loss.sum(), params)
    assert torch.equal(torch.get_rng_state(), after)


def test_second_derivatives_are_the_same():
    runs = []
    for scorer in scorers():
        params = leaves(scorer.init(generator(0))[0])
        with replay(3):
            loss = losses(scorer, params).sum()
        first = slopes(loss, params, create_graph=True)
        runs.append(slopes(sum(g.square().sum() for g in first), params))
    for plain, remat in zip(*runs, strict=True):
        torch.testing.assert_close(remat, plain)


def test_two_models_of_one_module_keep_their_own_weights():
    """Tensors that differ between the calls, gradients of both taken after both."""
    runs = []
    for scorer in scorers():
        one, two = (leaves(scorer.init(generator(i))[0]) for i in (0, 1))
        with replay(3):
            total = losses(scorer, one).sum() - 2 * losses(scorer, two).sum()
        runs.append([*slopes(total, one, retain_graph=True), *slopes(total, two)])
    assert all(map(torch.equal, *runs))


def test_functional_call_of_torch_has_the_same_gradients():
    runs = []
    for scorer in scorers():
        params = leaves(scorer.init(generator(0))[0])
        module = scorer.backbone.build(5)
        steps = scorer.encode(CHAINS)
        batch = {"input_ids": steps.ids}, steps.lengths, steps.ends
        z = functional_call(module, params, (batch,))[steps.mask]
        runs.append((z, *slopes(z.square().sum(), params)))
    assert all(map(torch.equal, *runs))


class Weighted(GradientProblem):
    """Rows' weights phi, divided by a detached mean of the losses, and a meta-loss."""

    def __init__(self, scorer):
        self.scorer, self.inner_optimizer = scorer, SGD(lr=0.01)

    def init_outer(self, generator):
        return {"w": torch.ones(6)}

    def init_params(self, outer, generator):
        return self.scorer.init(generator)[0]

    def inner_batch(self, draw):
        return None

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        values = losses(self.scorer, inner)
        return (outer["w"] * values / values.detach().mean()).mean()

    def outer_loss(self, outer, inner, batch):
        return losses(self.scorer, inner).square().mean()


@pytest.mark.parametrize("estimator", [FiniteDifference(inner_steps=2), Unroll(inner_steps=2)])
@pytest.mark.parametrize("lora", [None, LORA])
def test_hypergradients_are_the_same(estimator, lora):
    runs = []
    for scorer in scorers(lora=lora):
        problem = Weighted(scorer)
        outer = problem.init_outer(generator(0))
        inner, feedback = estimator(
            InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 2), 7
        )
        runs.append((feedback.grad["w"], *inner.params.values()))
    assert float(runs[0][0].abs().max()) > 0
    for plain, remat in zip(*runs, strict=True):
        torch.testing.assert_close(remat, plain)


def test_a_pattern_that_no_layer_matches_is_refused():
    scorer = TransformerScorer(CHAINS, SOURCE, remat=r"blocks\.\d+$")
    with pytest.raises(ValueError, match=r"no block of Qwen2Model .* named .*layers\.0"):
        scorer.init(generator(0))
