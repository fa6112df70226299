"""The split, the controls, the weights and the metrics of hyper-cleaning; a run that cleans."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

import metaopt
from metaopt import SGD, Descent, Score, Unroll
from metaopt.engine.inner_loop import InnerLoop
from metaopt.nn import MLP
from metaopt.optimizers import Constant, Schedule
from metaopt.problems.hyper_cleaning import (
    ConvNet,
    HyperCleaning,
    LogitTable,
    MetaWeightNet,
    digits,
)

LINEAR = partial(MLP, widths=())
SMALL = {"train": 60, "clean": 20, "test": 30, "batch": 20}


def small(data=None, model=LINEAR, weights=None, **settings):
    data, weights = data or digits(), weights or LogitTable()
    return HyperCleaning(data, model, weights, SGD(lr=0.5), **{**SMALL, **settings})


def state(problem, outer=None):
    outer = outer or problem.init_outer(torch.Generator().manual_seed(0))
    return outer, InnerLoop(problem).start(outer, None, 0)


def epoch(problem):
    return [problem.inner_batch_at(i) for i in range(problem.inner_batches)]


def test_the_seed_divides_the_images_into_three_parts_and_draws_labels_again():
    data = digits()
    problem = small(train=1000, clean=200, test=None, batch=None)
    images = torch.cat([problem.train.x, problem.clean.x, problem.test[0]]).flatten(1)
    everything = data.x.flatten(1)
    assert sorted(images.tolist()) == sorted(everything.tolist())
    index = {tuple(x): int(y) for x, y in zip(everything.tolist(), data.y, strict=True)}
    truth = torch.tensor([index[tuple(x)] for x in problem.train.x.flatten(1).tolist()])
    assert torch.equal(problem.right.bool(), problem.train.y == truth)
    # half are drawn again, of which one in ten is right by chance: 55 %, standard error 1.6 %
    assert 0.5 < problem.right.mean() < 0.6
    clean = torch.tensor([index[tuple(x)] for x in problem.clean.x.flatten(1).tolist()])
    assert torch.equal(clean, problem.clean.y)
    assert problem.resplit == pytest.approx(597 / 1200)
    assert not torch.equal(problem.train.y, small(train=1000, clean=200, seed=1).train.y)


def test_test_images_of_their_own_are_the_test():
    data = digits()
    test = data.x[:50], data.y[:50]
    problem = small(data._replace(x=data.x[50:], y=data.y[50:], test=test), test=40)
    assert torch.equal(problem.test[0], test[0][:40])
    assert torch.equal(problem.test[1], test[1][:40])
    assert problem.resplit == 0


def test_the_losses_are_those_of_the_formula():
    problem = small()
    outer, inner = state(problem, {"logit": torch.linspace(-3, 3, 60)})
    batch = problem.inner_batch_at(1)
    weight, bias = inner.params.values()
    losses = cross_entropy(linear(batch.x.flatten(1), weight, bias), batch.y, reduction="none")
    weights = 1 / (1 + (-outer["logit"][20:40]).exp())
    torch.testing.assert_close(
        problem.inner_loss(outer, inner.params, batch), (weights * losses).mean()
    )
    clean = problem.outer_batch_at(0)
    logits = linear(clean.x.flatten(1), weight, bias)
    value = problem.outer_loss(outer, inner.params, clean)
    torch.testing.assert_close(value, cross_entropy(logits, clean.y))


def test_controls_train_on_what_they_say():
    learned, everything, oracle, clean = (
        small(rows=rows) for rows in ("learned", "all", "oracle", "clean")
    )
    outer, inner = state(learned, {"logit": torch.full((60,), 50.0)})  # weights of 1

    def g(problem):
        losses = [problem.inner_loss(outer, inner.params, batch) for batch in epoch(problem)]
        return torch.stack(losses).mean()

    torch.testing.assert_close(g(everything), g(learned))
    losses = learned.example_losses(outer, inner.params, learned.train)
    torch.testing.assert_close(g(oracle), losses[learned.right.bool()].mean())
    torch.testing.assert_close(
        g(clean), learned.outer_loss(outer, inner.params, learned.outer_batch_at(0))
    )
    assert clean.inner_batches == clean.outer_batches == 1


def test_f1_counts_weights_above_one_half_and_mean_weights_show_what_f1_hides():
    problem = small()
    right = problem.right
    threshold = torch.where(right > 0, 0.01, -0.01)  # all on the right side, and none has moved
    figures = problem.metrics(*state(problem, {"logit": threshold}))
    assert figures["f1"] == 1
    assert figures["right_weight"] - figures["wrong_weight"] < 0.01
    mistaken = threshold.clone()
    hit, missed = (right > 0).nonzero().flatten(), (right == 0).nonzero().flatten()
    mistaken[hit[:4]], mistaken[missed[:2]] = -1.0, 1.0
    count = len(hit)
    precision, recall = (count - 4) / (count - 2), (count - 4) / count
    figures = problem.metrics(*state(problem, {"logit": mistaken}))
    assert figures["f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_controls_measure_the_labels_that_they_keep():
    oracle, everything = (small(rows=rows) for rows in ("oracle", "all"))
    figures = oracle.metrics(*state(oracle))
    assert [figures[k] for k in ("f1", "right_weight", "wrong_weight")] == [1, 1, 0]
    share = everything.right.mean()
    assert everything.metrics(*state(everything))["f1"] == pytest.approx(2 * share / (1 + share))
    for problem in (small(rows="clean"), small(noise=0.0)):
        assert {*problem.metrics(*state(problem))} == {"test_accuracy", "test_loss"}


def test_weights_start_above_the_threshold():
    for weights, start in ((LogitTable(), 1 / (1 + math.exp(-2))), (MetaWeightNet(hidden=5), 1)):
        problem = small(weights=weights)
        figures = problem.metrics(*state(problem))
        assert figures["wrong_weight"] == pytest.approx(start)


def test_a_meta_weight_net_reads_losses_as_constants():
    weights = MetaWeightNet(hidden=5)
    phi = weights.init(60, torch.Generator().manual_seed(0))
    phi = {k: torch.ones_like(v).requires_grad_() for k, v in phi.items()}
    losses = torch.tensor([0.1, 2.0], requires_grad=True)
    value = weights(phi, torch.arange(2), losses)
    hidden = (losses.detach() + 1).relu()
    weights = (5 * hidden + 1).sigmoid()
    torch.testing.assert_close(value, weights / weights.mean())
    value[0].backward()
    assert losses.grad is None
    assert all(v.grad is not None for v in phi.values())


def test_a_convolutional_network_halves_an_image_in_each_layer():
    problem = small(model=ConvNet)
    assert problem.network.params[-2:] == ("7.weight", "7.bias")
    assert state(problem)[1].params["7.weight"].shape == (10, 16 * 2 * 2)
    with pytest.raises(ValueError, match="images of 8 x 8 pixels"):
        small(model=partial(ConvNet, channels=[4, 4, 4, 4]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": 1.5}, "noise"), ({"rows": "some"}, "rows to be one of learned, all"),
        ({"batch": 7}, "train to be a multiple of batch"),
        ({"clean_batch": 3}, "clean to be a multiple of clean_batch"),
        ({"train": 0}, "train to be an int >= 1"), ({"batch": 0}, "batch to be an int >= 1"),
        ({"rows": "oracle", "train": 1, "batch": 1, "noise": 1.0}, "left none of 1: use less"),
        ({"test": 2000}, "test=2000, of 1797 images"),
        ({"train": 1780, "clean": 20}, "of 1797 images"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


@pytest.fixture(scope="module")
def accuracy_of_all():
    problem = cleaning("all")
    return run(problem, Score(inner_steps=5), Schedule(Constant())).metrics["eval/test_accuracy"]


def cleaning(rows, weights=None):
    weights = weights or LogitTable()
    return HyperCleaning(digits(), LINEAR, weights, SGD(lr=1.0), batch=250, rows=rows)


def run(problem, estimator, optimizer):
    return metaopt.run(problem, estimator, optimizer, 100, progress=False, eval_every=100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "rate"), [(LogitTable(), 0.1), (MetaWeightNet(), 0.01)], ids=["table", "network"]
)
def test_learned_weights_clean_digits(weights, rate, accuracy_of_all):
    descent = Descent("adam", lr=rate)
    metrics = run(cleaning("learned", weights), Unroll(inner_steps=5), descent).metrics
    assert metrics["eval/f1"] >= 0.9
    assert metrics["eval/test_accuracy"] >= accuracy_of_all + 0.03
    assert metrics["eval/right_weight"] > metrics["eval/wrong_weight"] + 0.5
