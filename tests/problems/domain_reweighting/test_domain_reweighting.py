"""Domain reweighting: its hypergradients against exact ones, its options, its phases."""

from __future__ import annotations

import functools

import pytest
import scipy.stats
import torch
from reweighted_regression import Regression, problem

from metaopt.engine import Engine, tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, AdamW
from metaopt.engine.random import Draw, fold, generator
from metaopt.estimators import FiniteDifference, Implicit, OneStep, Unroll
from metaopt.estimators.direct import Direct
from metaopt.estimators.solvers import ConjugateGradient
from metaopt.optimizers import Descent
from metaopt.problems.domain_reweighting.phases import fit, untrained
from metaopt.problems.domain_reweighting.weights import (
    LearningToReweight,
    Regulariser,
    WeightNetwork,
    WeightTable,
)
from metaopt.testing.precision import with_one_batch
from metaopt.testing.trees import identical

KEY = 11


def adam(lr=0.1):
    return Descent(functools.partial(torch.optim.Adam, lr=lr, eps=1e-12))


def start(of, phi=None):
    outer = of.init_outer(generator(3))
    outer = {k: v.double() for k, v in outer.items()} if phi is None else phi
    return outer, InnerLoop(of).start(outer, None, KEY)


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
    found = FiniteDifference(inner_steps=0)(InnerLoop(of), outer, inner, KEY)[1].grad["weights"]
    assert torch.cosine_similarity(found, exact, dim=0) > 0.9999
    torch.testing.assert_close(found * 1e-3, exact, rtol=0.02, atol=1e-7)


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
    found = engine.metrics()
    assert found["eval/error"] < 0.6
    assert found["eval/weight/clean"] > 2 * found["eval/weight/inverted"]


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


def test_the_reference_is_a_model_trained_with_uniform_weights():
    task = Regression()
    of = problem(task, objective="excess", reference_steps=400, lr=0.02, batch=120)
    found = start(of)[1].state["reference"]
    theta = torch.linalg.lstsq(task.x, task.y).solution
    losses = task.row_losses({"theta": theta}, torch.arange(120))
    assert found.shape == (120,)
    assert abs(float(found.mean() - losses.mean())) < 0.05 * float(losses.mean())


def test_each_domain_is_drawn_equally_often_or_in_proportion_to_its_size():
    task = Regression(sizes=(10, 30, 60))
    of = problem(task, batch=9)
    for seed in range(5):
        drawn = task.domain[of.inner_batch(Draw(seed)).rows]
        assert torch.bincount(drawn).tolist() == [3, 3, 3]
    rows = torch.cat([problem(task, batch=1).inner_batch(Draw(s)).rows for s in range(3000)])
    share = torch.bincount(task.domain[rows]) / 3000
    assert share.sub(1 / 3).abs().max() < 0.04
    assert len(rows.unique()) == 100
    of = problem(task, batch=5000, sampling="rows")
    share = torch.bincount(task.domain[of.inner_batch(Draw(0)).rows]) / 5000
    assert share.sub(torch.tensor([0.1, 0.3, 0.6])).abs().max() < 0.03


def test_meta_batches_hold_each_kind_in_its_share_and_each_row_equally_often():
    task = empty(meta_kinds=torch.tensor([0, 1, 1] * 20))
    drawn = [problem(task).sampler.meta(generator(s), 16).rows for s in range(300)]
    counts = torch.stack([torch.bincount(task.meta_kinds[rows], minlength=2) for rows in drawn])
    assert {5, 6} >= set(counts[:, 0].tolist())
    assert float(counts[:, 0].double().mean()) == pytest.approx(16 / 3, abs=0.1)
    often = torch.bincount(torch.cat(drawn), minlength=60) / (300 * 16 / 60)
    assert 0.6 < float(often.min()) < float(often.max()) < 1.4
    plain = problem().sampler.meta(generator(0), 600).rows
    assert torch.bincount(task.meta_kinds[plain])[0] not in (199, 200, 201)


def test_meta_only_training_reads_meta_rows_alone():
    of = problem(train_on="meta", lr=0.1)
    engine = Engine(of, Direct(5), adam(), outer_steps=60)
    assert len(list(engine)) == 60
    assert engine.metrics()["eval/error"] < 1e-3
    assert engine.metrics()["eval/weight/inverted"] == 1
    assert "eval/z/clean" not in engine.metrics()


@pytest.mark.parametrize("per", ["domain", "row"])
def test_weights_start_where_they_are_told_to(per):
    weights = WeightTable(per)

    def first(**options):
        of = problem(weights=weights, **options)
        outer, inner = start(of)
        return of.domain_weights(outer, inner)

    torch.testing.assert_close(first()[0], torch.ones(3, dtype=torch.float64))
    by_quality, share = first(initial="oracle")
    torch.testing.assert_close(by_quality, torch.tensor([3.0, 0, 0]).double(), atol=1e-4, rtol=0)
    assert float(share) == pytest.approx(1 / 3, abs=1e-4)
    p = first(initial="random", effective_domains=2.2)[0] / 3
    assert float(torch.exp(-(p * p.log()).sum())) == pytest.approx(2.2, abs=1e-4)
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)


def test_the_filter_keeps_the_rows_that_agree_with_the_meta_rows():
    weights = WeightTable("row", "clamp", bound=10.0)
    of = problem(weights=weights, initial="filter", keep=0.25, reference_steps=200)
    outer, inner = start(of)
    assert outer["weights"].unique().tolist() == [0, 4]
    by_domain, share = of.domain_weights(outer, inner)
    assert by_domain[0] > 2.5 > 0.3 > by_domain[1]
    assert float(share) == pytest.approx(0.25)


class Counted(SGD):
    """Counts its steps, each of which took one gradient."""

    steps = 0

    def update_(self, *arguments):
        Counted.steps += 1
        super().update_(*arguments)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"retrain": "final"},
        {"finetune": 7, "compare_uniform": True},
        {"objective": "excess", "reference_steps": 9},
        {"weights": WeightTable("row", "clamp"), "initial": "filter", "reference_steps": 9},
    ],
)
def test_what_is_trained_beside_the_loop_is_charged(settings, monkeypatch):
    monkeypatch.setattr(Counted, "steps", 0)
    of = problem(**settings)
    of.inner_optimizer = Counted(lr=0.05)
    engine = Engine(of, Direct(2), adam(), outer_steps=3)
    assert len(list(engine)) == 3
    engine.finish()
    assert engine.ledger.spent["inner_steps"] == Counted.steps
    assert engine.ledger.spent["gradients"] == Counted.steps


def test_several_models_side_by_side_share_the_weights_or_have_their_own():
    one, many = Regression(), Regression(runs=2)
    of, both = (with_one_batch(problem(t), KEY) for t in (one, many))
    outer, state = start(both)
    own = {"weights": torch.stack([outer["weights"], outer["weights"] + 0.3])}
    grads = FiniteDifference(inner_steps=0)(InnerLoop(both), own, tree.clone(state), KEY)[1].grad[
        "weights"
    ]
    shared = FiniteDifference(inner_steps=0)(InnerLoop(both), outer, tree.clone(state), KEY)[
        1
    ].grad["weights"]
    singles = []
    for run in range(2):
        _, inner = start(of)
        inner = inner._replace(params={"theta": state.params["theta"][run].clone()})
        for phi in ({"weights": own["weights"][run]}, outer):
            singles.append(
                FiniteDifference(inner_steps=0)(InnerLoop(of), phi, tree.clone(inner), KEY)[1]
            )
    found = [s.grad["weights"] for s in singles]
    torch.testing.assert_close(grads, torch.stack([found[0], found[2]]), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(shared, found[1] + found[3], rtol=1e-5, atol=1e-8)
    assert both.metrics(own, state)["error"].shape == (2,)


def run(of, steps, estimator=None, optimizer=None):
    estimator = estimator or FiniteDifference(inner_steps=3)
    engine = Engine(of, estimator, optimizer or adam(), outer_steps=steps)
    assert len(list(engine)) == steps
    return engine


def test_observed_moments_are_those_of_the_hypergradients():
    of = problem()
    engine = Engine(of, FiniteDifference(inner_steps=3), adam(), outer_steps=6)
    seen = torch.stack([feedback.grad["weights"] for _, feedback in engine])
    snapshot = of.report.snapshot(engine.optimizer.solution, engine.inner)
    torch.testing.assert_close(snapshot["hypergradient"].to(seen), seen.mean(0))
    expected = scipy.stats.ttest_1samp(seen.numpy(), 0.0).statistic
    torch.testing.assert_close(
        snapshot["z"], torch.tensor(expected), check_dtype=False, rtol=1e-4, atol=1e-4
    )
    assert engine.inner.state["moments"]["count"] == 6


def test_retraining_trains_a_new_model_with_the_weights_frozen():
    engine = run(problem(retrain="final"), 10)
    of, phi, before = engine.problem, tree.clone(engine.optimizer.solution), engine.inner
    kept = tree.clone(before.params)
    engine.finish()
    anew = fold(fold(0, "finish"), "retrain")
    loop = InnerLoop(of)
    new = untrained(loop, of.task, anew)
    state = fit(loop, new, lambda k, g: of.sampler.rows(g, of.batch), 30, anew, phi)
    assert identical(engine.inner.params, state.params)
    assert not identical(engine.inner.params, kept)
    assert engine.inner.step == 30
    assert engine.inner.state["moments"]["count"] == 10


def test_retraining_with_the_average_takes_the_mean_of_the_weights_so_far():
    of = problem(retrain="average")
    engine = Engine(of, FiniteDifference(inner_steps=3), adam(), outer_steps=8)
    tables = [of.weights.table(engine.optimizer.solution)]
    for _ in engine:
        tables.append(of.weights.table(engine.optimizer.solution))
    mean = torch.stack(tables[:-1]).mean(0)
    frozen = of.weights.table(of._final_phi(engine.optimizer.solution, engine.inner))
    torch.testing.assert_close(frozen, mean)
    assert not torch.allclose(frozen, tables[-1])


def test_fine_tuning_goes_on_from_the_model_on_meta_rows():
    engine = run(problem(Regression(), lr=0.1, finetune=80), 3, Direct(3))
    before = engine.metrics()["eval/error"]
    engine.finish()
    assert before > 1
    assert engine.metrics()["eval/error"] < 1e-3


def test_the_uniform_model_is_a_run_without_weights():
    of = problem(compare_uniform=True)
    engine = run(of, 40)
    engine.finish()
    found = engine.metrics()
    alone = run(problem(initial="uniform"), 40, Direct(3))
    assert found["eval/uniform/error"] == pytest.approx(alone.metrics()["eval/error"], rel=0.3)
    assert found["eval/error"] < 0.5 * found["eval/uniform/error"]
    assert "theta" in of.models(engine.inner)["uniform"]


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


def test_a_regulariser_is_a_direct_term_of_the_meta_objective():
    plain, held = (
        with_one_batch(problem(regulariser=r), KEY) for r in (None, Regulariser("entropy", 0.5))
    )
    outer = {"weights": torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)}
    values = [InnerLoop(of).outer_value(outer, start(of)[1], Draw(KEY)) for of in (plain, held)]
    p = plain.weights.table(outer) / 3
    expected = 0.5 * (torch.log(torch.tensor(3.0)) + (p * p.log()).sum())
    torch.testing.assert_close(values[1] - values[0], expected)


def empty(**attributes):
    task = Regression()
    for name, value in attributes.items():
        setattr(task, name, value)
    return task


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: problem(objective="best"), "objective must be one of meta, worst_domain, excess"),
        (lambda: problem(sampling="size"), "sampling must be one of domains, rows; got 'size'"),
        (lambda: problem(train_on="all"), "train_on must be one of domains, meta"),
        (lambda: problem(initial="equal"), "initial must be one of uniform, oracle, random, fil"),
        (lambda: problem(retrain="last"), "retrain must be one of null, final, average"),
        (lambda: problem(batch=0), "batch must be >= 1; got 0"),
        (lambda: problem(meta_batch=0), "meta_batch must be >= 1; got 0"),
        (lambda: problem(finetune=-1), "finetune must be >= 0; got -1"),
        (lambda: problem(reference_steps=0), "reference_steps must be >= 1; got 0"),
        (lambda: problem(keep=0.0), r"keep must be in \(0, 1\]; got 0.0"),
        (lambda: problem(effective_domains=3.5), r"effective_domains must be in \[1, 3\]"),
        (lambda: problem(Regression(meta_rows=0)), "no meta rows, which objective=meta needs"),
        (
            lambda: problem(Regression(meta_rows=0), objective="excess", finetune=2),
            "no meta rows, which finetune needs",
        ),
        (lambda: problem(objective="excess", initial="filter"), "each need a reference"),
        (lambda: problem(initial="filter"), "a weight for each domain cannot. Set weights.per=row"),
        (
            lambda: problem(weights=WeightTable("row", "clamp"), initial="filter", keep=0.25),
            "1 / keep = 4, above weights.bound=2",
        ),
        (lambda: problem(weights=WeightNetwork(), retrain="final"), "retrain needs a WeightTable"),
        (
            lambda: problem(weights=WeightNetwork(), regulariser=Regulariser()),
            "regulariser needs a WeightTable; WeightNetwork has no weights",
        ),
        (
            lambda: problem(weights=LearningToReweight(), initial="oracle"),
            "LearningToReweight starts from no given weights",
        ),
        (
            lambda: problem(weights=LearningToReweight(), objective="worst_domain"),
            "LearningToReweight descends the meta-loss",
        ),
        (lambda: problem(empty(quality=None), initial="oracle"), "initial=oracle needs the qual"),
        (lambda: problem(empty(quality=None), initial="random"), "initial=random needs the qual"),
        (lambda: problem(empty(domains=("a", "a", "b"))), "domains of different names"),
        (lambda: problem(empty(domains=("a", "b", "c", "d"))), "empty: d, largest index: 2"),
        (lambda: problem(empty(domains=("a", "b"))), "index below 2"),
        (lambda: problem(empty(quality=torch.zeros(3))), "quality must be 3 numbers >= 0"),
    ],
)  # fmt: skip
def test_a_bad_option_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
