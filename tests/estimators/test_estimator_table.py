"""Every estimator x inner optimizer x complication is right or refused, and as its page says."""

import functools
from itertools import product

import dense
import estimator_table as table
import pytest
import torch
from combined import COMPLICATIONS, OPTIMIZERS, Combined

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.random import generator
from metaopt.engine.schedules import Cosine
from metaopt.estimators import ConjugateGradient, Exact, Implicit
from metaopt.testing import run_differences
from metaopt.testing.precision import with_one_batch

QUICK = [("SGD with decay", "BatchNorm"), ("AdamW", "frozen"), ("momentum", "average")]
CELLS = [
    pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow)
    for cell in product(OPTIMIZERS, COMPLICATIONS)
]


@functools.cache
def page():
    return table.read(table.PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("optimizer", "complication"), CELLS)
def test_a_cell_is_right_or_refused_as_its_page_says(optimizer, complication):
    for name in table.ROWS:
        verdict = table.judge(name, optimizer, complication)
        assert verdict.kind != "wrong", f"{name} is {verdict.detail} off"
        if verdict.kind != "refused":
            verdict = verdict._replace(detail="")
        shown = page()[name, optimizer, complication]
        assert verdict == shown, f"{name}: write the page again, python {table.__file__}"


def test_the_page_reads_back_as_it_is_written():
    shown = page()
    assert len(shown) == len(table.ROWS) * len(OPTIMIZERS) * len(COMPLICATIONS)
    assert table.written(shown) == table.PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_wrong_estimate_is_called_wrong(monkeypatch):
    row = table.ROWS["unroll"]
    monkeypatch.setitem(
        table.ROWS, "unroll", row._replace(estimate=lambda cell: 1.0001 * row.estimate(cell))
    )
    assert table.judge("unroll", "momentum", "direct").kind == "wrong"
    strategies = table.ROWS["evolution_strategies"]
    for factor in (0.0, 2.0):
        estimate = lambda cell, f=factor: f * strategies.estimate(cell)  # noqa: E731
        monkeypatch.setitem(
            table.ROWS, "evolution_strategies", strategies._replace(estimate=estimate)
        )
        assert table.judge("evolution_strategies", "momentum", "direct").kind == "wrong"


CONVERGING = {
    "SGD with decay": SGD(lr=0.5, weight_decay=0.2),
    "momentum": SGD(lr=0.3, momentum=0.5, nesterov=True),
    "Adam": Adam(lr=0.5, eps=1.0, betas=(0.5, 0.9), weight_decay=0.1),
    "clipping": SGD(lr=0.5, clip_norm=0.3),
    "schedule": SGD(lr=0.5, schedule=Cosine(total=200, floor=0.5)),
}
SOLVERS = {"cg": ConjugateGradient(**table.CONVERGED), "exact": Exact()}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", CONVERGING)
@pytest.mark.parametrize("complication", ["frozen", "tied", "unused", "direct"])
def test_a_converged_solve_is_exact_at_the_solution(optimizer, complication):
    problem = Combined(optimizer, complication)
    problem.inner_optimizer = CONVERGING[optimizer]
    loop, outer = InnerLoop(with_one_batch(problem, 1)), problem.init_outer(generator(0))
    inner = loop.run(outer, loop.start(outer, None, 0), 0, 500)
    oracle = run_differences(loop, outer, inner, 0, 120)
    assert oracle.uncertainty < 1e-7
    for name, solver in SOLVERS.items():
        if (
            name == "exact"
            and complication == "unused"
            and not problem.inner_optimizer.weight_decay
        ):
            continue  # refused: a parameter that g does not read makes H singular
        estimator = Implicit(solver, inner_steps=0)
        assert oracle.distance(estimator(loop, outer, tree.clone(inner), 0)[1].grad) < 1e-6


def test_the_optimizers_of_the_dense_formulas_are_torchs():
    kinds = {
        "SGD with decay": torch.optim.SGD,
        "Adam": torch.optim.Adam,
        "AdamW": torch.optim.AdamW,
    }
    for name, kind in kinds.items():
        ours = OPTIMIZERS[name](0.3)
        theta = torch.linspace(-1, 1, 5, dtype=torch.float64)
        settings = {"lr": ours.lr, "weight_decay": ours.weight_decay}
        parameter = theta.clone().requires_grad_()
        optimizer = kind([parameter], **settings)
        moments = {k: torch.zeros_like(theta) for k in ("mean", "square")}
        for step in range(3):
            parameter.grad = torch.sin(parameter.detach() + step)
            theta, moments = dense.update(ours, theta, torch.sin(theta + step), moments, step)
            optimizer.step()
        torch.testing.assert_close(theta, parameter.detach(), rtol=0, atol=1e-14)
