"""Weights of rows: links against their formulas, the network against torch, diagnostics."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

from metaopt.engine.random import generator
from metaopt.problems.domain_reweighting.diagnostics import (
    alignments,
    effective_share,
    perplexity,
    random_weights,
)
from metaopt.problems.domain_reweighting.weights import (
    LearningToReweight,
    WeightNetwork,
    WeightTable,
    by_domain,
)

DOMAIN = torch.tensor([0, 0, 1, 2, 2, 2])
LINKS = ("softplus", "softmax", "simplex", "sigmoid", "clamp")
RAW = torch.tensor([1.2, -0.7, 0.3], dtype=torch.float64)


def test_softplus_is_the_formula_of_the_release():
    """dw_k / dr_j = sigma(r_j) / m ([j = k] - w_k / K) with m = mean softplus(r)."""
    table = WeightTable()
    jacobian = torch.func.jacrev(lambda r: table.table({"weights": r}))(RAW)
    w = softplus(RAW) / softplus(RAW).mean()
    m = softplus(RAW).mean()
    expected = torch.sigmoid(RAW) / m * (torch.eye(3) - w[:, None] / 3)
    torch.testing.assert_close(jacobian, expected)
    torch.testing.assert_close(table.table({"weights": torch.zeros(4)}), torch.ones(4))


def test_the_other_links_are_their_formulas():
    def table(link, raw, **options):
        return WeightTable(link=link, **options).table({"weights": raw})

    torch.testing.assert_close(table("softmax", RAW), 3 * RAW.exp() / RAW.exp().sum())
    torch.testing.assert_close(table("sigmoid", RAW, bound=2.5), 2.5 / (1 + (-RAW).exp()))
    clamped = torch.tensor([1.2, 0.0, 0.3], dtype=torch.float64)
    torch.testing.assert_close(table("clamp", RAW), clamped)
    torch.testing.assert_close(table("clamp", 3 * RAW)[0], torch.tensor(2.0).double())
    point = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(table("simplex", point), 3 * point)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("per", ["domain", "row"])
def test_a_table_starts_at_the_weights_it_is_given(link, per):
    table = WeightTable(per, link, bound=2.5)
    start = torch.tensor([1.5, 1.5, 1.2, 0.3, 0.3, 0.3]) / torch.tensor(1.0)
    start = start / (start.mean() if per == "row" else by_domain(start, DOMAIN).mean())
    phi = table.init(start, DOMAIN, generator(0))
    rows = torch.tensor([5, 0, 2])
    weights = table(phi, rows, DOMAIN[rows], torch.zeros(3))
    torch.testing.assert_close(weights, start[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("link", ["softplus", "softmax", "simplex"])
def test_these_links_have_mean_one_and_no_weight_below_zero(link):
    raw = torch.softmax(3 * RAW, -1) if link == "simplex" else 9 * RAW
    weights = WeightTable(link=link).table({"weights": raw})
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights.min()) >= 0


def test_a_phi_that_left_the_simplex_is_refused():
    table = WeightTable(link="simplex")
    for good in ([0.7, 0.3, 0.0], [[0.2, 0.3, 0.5], [0.0, 0.9996, 0.0]]):
        table.check({"weights": torch.tensor(good)})
    for bad, says in (
        ([0.5, 0.6, -0.1], "least entry of -0.1 and a sum off 1 by"),
        ([[0.5, 0.3, 0.2], [2.0, 1.0, 1.0]], "a sum off 1 by 3. Use optimizer=mirror"),
        ([0.5, 0.5, math.nan], "of nan"),
    ):
        with pytest.raises(ValueError, match=says):
            table.check({"weights": torch.tensor(bad)})
        WeightTable().check({"weights": torch.tensor(bad)})


def test_weights_of_zero_are_reached_as_nearly_as_the_link_allows():
    start = torch.tensor([2.0, 2.0, 1.0, 0.0, 0.0, 0.0])
    for link in LINKS:
        table = WeightTable(link=link, bound=3.0)
        weights = table.table(table.init(start, DOMAIN, generator(0)))
        torch.testing.assert_close(weights, torch.tensor([2.0, 1.0, 0.0]), atol=1e-5, rtol=1e-5)


def test_slopes_sum_the_hypergradient_over_the_rows_of_a_domain():
    grad = torch.arange(6.0)
    slopes = WeightTable("row").slopes({"weights": grad}, DOMAIN)
    torch.testing.assert_close(slopes, torch.tensor([1.0, 2.0, 12.0]))
    two = torch.stack([RAW, 3 * RAW])
    torch.testing.assert_close(WeightTable().slopes({"weights": two}, DOMAIN), 2 * RAW)
    assert WeightNetwork().slopes({}, DOMAIN) is None


def test_the_weight_network_is_torch_s_perceptron_of_the_detached_loss():
    network = WeightNetwork(hidden=7, normalise=False)
    phi = network.init(torch.ones(6), DOMAIN, generator(0))
    assert {k: tuple(v.shape) for k, v in phi.items()} == {
        "hidden.weight": (7,), "hidden.bias": (7,), "weight": (7,), "bias": (),
    }  # fmt: skip
    first, last = torch.nn.Linear(1, 7), torch.nn.Linear(7, 1)
    state = {"weight": phi["hidden.weight"][:, None], "bias": phi["hidden.bias"]}
    first.load_state_dict(state)
    last.load_state_dict({"weight": phi["weight"][None], "bias": phi["bias"][None]})
    losses = torch.rand(5, generator=generator(1), requires_grad=True)
    expected = torch.nn.Sequential(first, torch.nn.ReLU(), last, torch.nn.Sigmoid())
    leaves = {k: v.requires_grad_() for k, v in phi.items()}
    weights = network(leaves, torch.arange(5), DOMAIN[:5], losses)
    torch.testing.assert_close(weights, expected(losses[:, None])[:, 0])
    assert torch.autograd.grad(weights.sum(), losses, allow_unused=True) == (None,)
    even = WeightNetwork(hidden=7)(phi, torch.arange(5), DOMAIN[:5], losses)
    torch.testing.assert_close(even, weights / weights.mean())


def test_learning_to_reweight_keeps_what_descends_and_is_even_where_nothing_does():
    u = torch.tensor([2.0, -1.0, 4.0, 0.0, -3.0])
    rows, domain = torch.arange(5), DOMAIN[:5]
    weights = LearningToReweight()({}, rows, domain, u)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.0, 4.0, 0.0, 0.0]) * 5 / 6)
    torch.testing.assert_close(LearningToReweight()({}, rows, domain, -u.abs()), torch.ones(5))
    weights = LearningToReweight("domain")({}, rows, domain, u)
    means = torch.tensor([0.5, 0.5, 4.0, 0.0, 0.0])
    torch.testing.assert_close(weights, means / means.mean())
    assert LearningToReweight().init(torch.ones(6), DOMAIN, generator(0))["weights"].shape == (0,)


def test_effective_share_and_perplexity():
    w = torch.tensor([2.0, 2.0, 0.0, 0.0])
    assert float(effective_share(w)) == pytest.approx(0.5)
    assert float(perplexity(w)) == pytest.approx(2)
    assert float(perplexity(torch.ones(7))) == pytest.approx(7)


@pytest.mark.parametrize("effective", [1.0, 1.5, 4.0, 8.0])
def test_random_weights_have_the_perplexity_asked_for(effective):
    first, second = (random_weights(8, effective, generator(s)) for s in (0, 3))
    for w in (first, second):
        assert float(w.mean()) == pytest.approx(1)
        assert float(perplexity(w)) == pytest.approx(effective, rel=1e-3)
    assert effective == 8 or not torch.allclose(first, second)


def test_alignments_are_exact_inner_products_under_one_dropout_mask():
    """Two forward passes against the gradient of every row, with dropout on."""
    params = {"a": torch.randn(4, 3, generator=generator(0), dtype=torch.float64)}
    x = torch.randn(6, 4, generator=generator(1), dtype=torch.float64)
    meta = torch.randn(5, 4, generator=generator(2), dtype=torch.float64)

    def rows(theta, x=x):
        hidden = torch.dropout(torch.tanh(x @ theta["a"]), 0.3, True)
        return hidden.sum(-1) ** 2

    actual = alignments(lambda t: rows(t, meta).mean(), rows, params, 5)
    leaf = params["a"].clone().requires_grad_()
    torch.manual_seed(5)
    v = torch.autograd.grad(rows({"a": leaf}, meta).mean(), leaf)[0]
    torch.manual_seed(5)
    losses = rows({"a": leaf})
    row_grads = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses]
    expected = torch.stack([(g * v).sum() for g in row_grads])
    assert expected.abs().min() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightTable("question"), "per to be one of domain, row; got per='question'"),
        (lambda: WeightTable(link="relu"), "link to be one of softplus, softmax, sigmoid, cl"),
        (lambda: WeightTable(bound=1.0), "WeightTable needs bound > 1; got bound=1.0"),
        (lambda: WeightNetwork(0), "WeightNetwork needs hidden >= 1; got hidden=0"),
        (lambda: LearningToReweight("chain"), "per to be one of domain, row; got per='chain'"),
        (lambda: random_weights(4, 5.0, generator(0)), r"effective_domains must be in \[1, 4\]"),
    ],
)
def test_a_bad_argument_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
