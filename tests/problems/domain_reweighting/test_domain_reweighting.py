"""Domain reweighting: its hypergradients against exact ones, its objectives, its resume."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from reweighted_regression import KEY, Regression, adam, problem, run, start

from metaopt.engine import Engine, tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import AdamW
from metaopt.engine.random import Draw, fold, generator
from metaopt.estimators import FiniteDifference, Implicit, OneStep, Unroll
from metaopt.estimators.conjugate_gradient import ConjugateGradient
from metaopt.estimators.direct import Direct
from metaopt.problems.domain_reweighting.weights import (
    LearningToReweight,
    WeightNetwork,
    WeightTable,
)
from metaopt.testing.precision import with_one_batch
from metaopt.testing.trees import identical


def row_gradients(task, theta, rows):
    """Return dl_i/dtheta of each row, by a Jacobian."""
    return torch.func.jacrev(lambda t: task.row_losses({"theta": t}, rows))(theta)


def meta_gradient(task, theta, rows):
    return torch.func.grad(lambda t: task.meta_losses({"theta": t}, rows).mean())(theta)


@pytest.mark.parametrize("per", ["domain", "row"])
def test_the_default_solver_is_minus_the_alignment_of_gradients(per):
    """dF/dw_k = -<dF/dtheta, dl_k/dtheta>: two forward passes against every row's own gradient."""
    task = Regression(link=torch.tanh)
    of = with_one_batch(problem(task, weights=WeightTable(per, "clamp")), KEY)
    outer, inner = start(of)
    theta = inner.params["theta"].clone()
    _, feedback = FiniteDifference(inner_steps=0)(InnerLoop(of), outer, inner, KEY)
    rows, meta = of.inner_batch(Draw(0)).rows, of.outer_batch(Draw(0)).rows
    aligned = row_gradients(task, theta, rows) @ meta_gradient(task, theta, meta)
    expected = torch.zeros_like(outer["weights"])
    index = task.domain[rows] if per == "domain" else rows
    expected.index_add_(0, index, -aligned / len(rows))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(feedback.grad["weights"], expected, rtol=1e-6, atol=1e-9)


def test_at_the_inner_solution_the_hypergradient_is_that_of_weighted_least_squares():
    """theta(w) = (sum w x x^T)^-1 sum w x y, differentiated in closed form."""
    task = Regression()
    of = with_one_batch(problem(task, lr=0.2, weights=WeightTable(link="clamp"), batch=200), KEY)
    outer = {"weights": torch.tensor([1.4, 0.3, 0.8], dtype=torch.float64)}
    rows, meta = of.inner_batch(Draw(0)).rows, of.outer_batch(Draw(0)).rows
    x, y, domain = task.x[rows], task.y[rows], task.domain[rows]

    def outer_loss(w):
        weighted = x * w[domain, None]
        theta = torch.linalg.solve(weighted.T @ x, weighted.T @ y)
        return task.meta_losses({"theta": theta}, meta).mean()

    expected = torch.func.grad(outer_loss)(outer["weights"])
    _, inner = start(of, outer)
    solver = Implicit(ConjugateGradient(20, 0.0, 1e-12), inner_steps=400)
    _, feedback = solver(InnerLoop(of), outer, inner, KEY)
    torch.testing.assert_close(feedback.value, outer_loss(outer["weights"]))
    torch.testing.assert_close(feedback.grad["weights"], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("link", ["softplus", "softmax", "simplex", "sigmoid", "clamp"])
def test_one_step_unrolled_is_the_alignment_times_the_rate(link):
    task = Regression(link=torch.tanh)
    of = with_one_batch(problem(task, lr=1e-3, weights=WeightTable(link=link)), KEY)
    outer, inner = start(of)
    exact = Unroll(1)(InnerLoop(of), outer, tree.clone(inner), KEY)[1].grad["weights"]
    torch.testing.assert_close(
        OneStep(1)(InnerLoop(of), outer, tree.clone(inner), KEY)[1].grad["weights"], exact
    )
    actual = FiniteDifference(inner_steps=0)(InnerLoop(of), outer, inner, KEY)[1].grad["weights"]
    assert torch.cosine_similarity(actual, exact, dim=0) > 0.9999
    torch.testing.assert_close(actual * 1e-3, exact, rtol=0.02, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_bad_domains_lose_their_weight_and_the_model_finds_the_truth(seed):
    """Over 24 runs (8 seeds, 3 CPU capabilities) clean ends in 2.1-2.8, noisy in 0.13-0.86."""
    solver = FiniteDifference(inner_steps=5)
    engine = Engine(problem(), solver, adam(0.2), outer_steps=60, seed=seed)
    assert len(list(engine)) == 60
    metrics = engine.metrics()
    assert metrics["eval/weight/clean"] > 1.8
    assert metrics["eval/weight/inverted"] < 0.1
    assert metrics["eval/weight/noisy"] < 1
    assert metrics["eval/z/inverted"] > 2 > -2 > metrics["eval/z/clean"]
    assert metrics["eval/error"] < 0.4  # uniform weights: above 1
    assert metrics["eval/effective_share"] < 0.7


def test_a_simplex_is_for_mirror_descent_only():
    of = problem(weights=WeightTable(link="simplex"))
    engine = Engine(of, FiniteDifference(inner_steps=1), adam(0.05), outer_steps=5)
    with pytest.raises(ValueError, match=r"sum off 1 by .* Use optimizer=mirror"):
        list(engine)


def test_a_table_of_rows_tells_good_rows_from_bad_ones():
    uniform = run(problem(), 60, Direct(3))
    assert uniform.metrics()["eval/error"] > 1
    engine = run(problem(weights=WeightTable("row")), 60, optimizer=adam(0.3))
    metrics = engine.metrics()
    assert metrics["eval/error"] < 0.6
    assert metrics["eval/weight/clean"] > 2 * metrics["eval/weight/inverted"]


def test_learning_to_reweight_takes_the_rows_whose_gradients_agree_with_the_meta_rows():
    """Its weights, decided with the batch, against the Jacobian of every row."""
    task = Regression(link=torch.tanh)
    of = problem(task, weights=LearningToReweight())
    outer, inner = start(of)
    batch = InnerLoop(of).batch(outer, inner, Draw(KEY))
    draw = generator(fold(KEY, "decide", 0))
    meta = of.sampler.meta(draw, of.meta_batch).rows
    theta = inner.params["theta"]
    aligned = row_gradients(task, theta, batch.rows) @ meta_gradient(task, theta, meta)
    expected = aligned.clamp(min=0) / aligned.clamp(min=0).mean()
    torch.testing.assert_close(batch.weights, expected, rtol=1e-5, atol=1e-7)
    loss = of.inner_loss(outer, inner.params | inner.buffers, batch)
    losses = task.row_losses(inner.params, batch.rows)
    torch.testing.assert_close(loss, (expected * losses).mean())
    engine = run(problem(weights=LearningToReweight()), 60, Direct(3))
    assert engine.metrics()["eval/error"] < 0.5


@pytest.mark.parametrize("objective", ["worst_domain", "excess"])
def test_without_meta_rows_the_outer_level_climbs_the_weighted_losses(objective):
    """dF/dp_k of weights K p_k is -K / B times the sum of the domain's (excess) losses."""
    task = Regression(meta_rows=0)
    weights = WeightTable(link="simplex")
    of = problem(task, weights=weights, objective=objective, reference_steps=30)
    of = with_one_batch(of, KEY)
    outer, inner = start(of)
    _, feedback = Direct(0)(InnerLoop(of), outer, inner, KEY)
    rows = of.outer_batch(Draw(0)).rows
    losses = task.row_losses(inner.params, rows)
    if objective == "excess":
        reference = inner.state["reference"][rows]
        assert 0 < (losses > reference).float().mean() < 1
        losses = (losses - reference).clamp(min=0)
    sums = torch.zeros(3, dtype=torch.float64).index_add_(0, task.domain[rows], losses)
    torch.testing.assert_close(feedback.grad["weights"], -3 / len(rows) * sums)
    torch.testing.assert_close(feedback.value, -losses.mean())


def test_several_batched_models_share_the_weights_or_have_their_own():
    one, many = Regression(), Regression(runs=2)
    of, both = (with_one_batch(problem(t), KEY) for t in (one, many))
    outer, state = start(both)
    tables = {"weights": torch.stack([outer["weights"], outer["weights"] + 0.3])}
    grads = FiniteDifference(inner_steps=0)(InnerLoop(both), tables, tree.clone(state), KEY)[
        1
    ].grad["weights"]
    shared = FiniteDifference(inner_steps=0)(InnerLoop(both), outer, tree.clone(state), KEY)[
        1
    ].grad["weights"]
    singles = []
    for model in range(2):
        _, inner = start(of)
        inner = inner._replace(params={"theta": state.params["theta"][model].clone()})
        for phi in ({"weights": tables["weights"][model]}, outer):
            singles.append(
                FiniteDifference(inner_steps=0)(InnerLoop(of), phi, tree.clone(inner), KEY)[1]
            )
    single_grads = [s.grad["weights"] for s in singles]
    torch.testing.assert_close(
        grads, torch.stack([single_grads[0], single_grads[2]]), rtol=1e-5, atol=1e-8
    )
    torch.testing.assert_close(shared, single_grads[1] + single_grads[3], rtol=1e-5, atol=1e-8)
    assert both.metrics(tables, state)["error"].shape == (2,)


def test_observed_moments_are_those_of_the_hypergradients():
    of = problem()
    engine = Engine(of, FiniteDifference(inner_steps=3), adam(), outer_steps=6)
    grads = torch.stack([feedback.grad["weights"] for _, feedback in engine])
    snapshot = of.report.snapshot(engine.optimizer.solution, engine.inner)
    torch.testing.assert_close(snapshot["hypergradient"].to(grads), grads.mean(0))
    expected = scipy.stats.ttest_1samp(grads.numpy(), 0.0).statistic
    torch.testing.assert_close(
        snapshot["z"], torch.tensor(expected), check_dtype=False, rtol=1e-4, atol=1e-4
    )
    assert engine.inner.state["moments"]["count"] == 6


@pytest.mark.parametrize(
    "weights", [WeightTable("row"), WeightNetwork(8), LearningToReweight()], ids=lambda w: w.reads
)
def test_resumed_in_the_middle_it_continues_to_the_bit(weights, tmp_path):
    def engine(steps):
        options = {"weights": weights, "compare_uniform": True, "finetune": 3}
        of = problem(Regression(link=torch.tanh), **options)
        of.inner_optimizer = AdamW(lr=0.01)
        estimator = Direct(3) if weights.reads == "gradients" else FiniteDifference(inner_steps=3)
        return Engine(of, estimator, adam(), outer_steps=steps)

    whole, first, second = engine(7), engine(4), engine(7)
    assert len(list(whole)) == 7
    assert len(list(first)) == 4
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [step for step, _ in second] == [5, 6, 7]
    for end in (whole, second):
        end.finish()
    assert identical(second.state_dict(), whole.state_dict())
    assert second.metrics() == whole.metrics()
