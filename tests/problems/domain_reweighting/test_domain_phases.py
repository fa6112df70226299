"""Models trained before and after the outer loop, and the weights to start from."""

from __future__ import annotations

import pytest
import torch
from reweighted_regression import Regression, adam, problem, run, start

from metaopt.engine import Engine, tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import fold
from metaopt.estimators import FiniteDifference
from metaopt.estimators.direct import Direct
from metaopt.problems.domain_reweighting.phases import fit, untrained
from metaopt.problems.domain_reweighting.weight_summary import domain_weights
from metaopt.problems.domain_reweighting.weights import (
    WeightTable,
)
from metaopt.testing.trees import identical


def test_the_reference_is_a_model_trained_with_uniform_weights():
    task = Regression()
    of = problem(task, objective="excess", reference_steps=400, lr=0.02, batch=120)
    reference = start(of)[1].state["reference"]
    theta = torch.linalg.lstsq(task.x, task.y).solution
    losses = task.row_losses({"theta": theta}, torch.arange(120))
    assert reference.shape == (120,)
    assert abs(float(reference.mean() - losses.mean())) < 0.05 * float(losses.mean())


@pytest.mark.parametrize("per", ["domain", "row"])
def test_weights_start_where_they_are_told_to(per):
    weights = WeightTable(per)

    def first(**options):
        of = problem(weights=weights, **options)
        outer, inner = start(of)
        return domain_weights(of, outer, inner)

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
    by_domain, share = domain_weights(of, outer, inner)
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


def test_retraining_trains_a_new_model_with_the_weights_frozen():
    engine = run(problem(retrain="final"), 10)
    of, phi, before = engine.problem, tree.clone(engine.optimizer.solution), engine.inner
    start_params = tree.clone(before.params)
    engine.finish()
    anew = fold(fold(0, "finish"), "retrain")
    loop = InnerLoop(of)
    new = untrained(loop, of.task, anew)
    state = fit(loop, new, lambda k, g: of.sampler.rows(g, of.batch), 30, anew, phi)
    assert identical(engine.inner.params, state.params)
    assert not identical(engine.inner.params, start_params)
    assert engine.inner.step == 30
    assert engine.inner.state["moments"]["count"] == 10


def test_retraining_with_the_average_takes_the_mean_of_the_weights_so_far():
    of = problem(retrain="average")
    engine = Engine(of, FiniteDifference(inner_steps=3), adam(), outer_steps=8)
    tables = [of.weights.table(engine.optimizer.solution)]
    for _ in engine:
        tables.append(of.weights.table(engine.optimizer.solution))
    mean = torch.stack(tables[:-1]).mean(0)
    frozen = of.weights.table(of.final_phi(engine.optimizer.solution, engine.inner))
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
    metrics = engine.metrics()
    alone = run(problem(initial="uniform"), 40, Direct(3))
    assert metrics["eval/uniform/error"] == pytest.approx(alone.metrics()["eval/error"], rel=0.3)
    assert metrics["eval/error"] < 0.5 * metrics["eval/uniform/error"]
    assert "theta" in of.models(engine.inner)["uniform"]
