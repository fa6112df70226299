"""The weights that a run hands over to other trainers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from reweighted_regression import Regression, problem, start

from metaopt.data.weights_file import Example, read_example_weights
from metaopt.problems.domain_reweighting.export import example_weights, export_weights
from metaopt.problems.domain_reweighting.weights import (
    LearningToReweight,
    WeightNetwork,
    WeightTable,
)


def identified(sizes=(10, 30, 5), **options):
    task = Regression(sizes, **options)
    task.examples = [Example(f"rows:{i}", bytes(16), "rows", i) for i in range(sum(sizes))]
    task.hashed_columns = ("x",)
    return task


@pytest.mark.parametrize("sampling", ["domains", "rows"])
@pytest.mark.parametrize("per", ["domain", "row"])
def test_a_uniform_draw_with_the_weights_has_the_gradient_of_the_run(sampling, per):
    of = problem(identified(), weights=WeightTable(per), sampling=sampling)
    phi = {"weights": torch.linspace(-1, 2, 3 if per == "domain" else 45, dtype=torch.float64)}
    outer, inner = start(of, phi)
    weights = example_weights(of, outer, inner)
    theta = inner.params["theta"].requires_grad_()

    def direction(loss):
        (grad,) = torch.autograd.grad(loss, theta)
        return grad / grad.norm()

    handed_over = direction(weights @ of.task.row_losses({"theta": theta}, torch.arange(45)))
    draw = torch.Generator().manual_seed(0)
    batch = of.sampler.rows(draw, 600_000)
    weighted = of.weights(outer, batch.rows, of.domain[batch.rows], torch.zeros(0))
    run = direction(weighted @ of.task.row_losses({"theta": theta}, batch.rows))
    assert weights.mean() == pytest.approx(1)
    torch.testing.assert_close(handed_over, run, atol=0.02, rtol=0)


def test_weights_of_losses_are_those_of_the_whole_data(tmp_path):
    of = problem(identified(), weights=WeightNetwork(hidden=4), sampling="rows")
    outer, inner = start(of)
    losses = of.task.row_losses(inner.params, torch.arange(45))
    expected = of.weights(outer, torch.arange(45), of.domain, losses)
    torch.testing.assert_close(example_weights(of, outer, inner), expected / expected.mean())


def test_the_file_names_run_commit_and_domains(tmp_path):
    of = problem(identified(), weights=WeightTable("row", "clamp"), sampling="rows")
    phi = {"weights": torch.arange(45.0) - 5}
    record = {"commit": "abc", "versions": {"metaopt": "1"}}
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    assert "45 training examples" in export_weights(of, of.task, *start(of, phi), tmp_path)
    file = read_example_weights(tmp_path / "weights.parquet")
    assert file.origin == {
        "run": "/".join(tmp_path.parts[-2:]), "commit": "abc", "metaopt": "1",
    }  # fmt: skip
    assert file.domain == ["clean"] * 10 + ["inverted"] * 30 + ["noisy"] * 5
    assert file.keep.tolist() == [False] * 6 + [True] * 39
    assert file.columns == ["x"]


def test_a_run_without_weights_of_its_examples_says_so(tmp_path):
    for options in ({"train_on": "meta"}, {"weights": LearningToReweight()}):
        of = problem(identified(), **options)
        said = export_weights(of, of.task, {}, SimpleNamespace(), tmp_path)
        assert "no weights.parquet" in said
    assert not list(tmp_path.iterdir())


def test_a_task_identifies_all_its_examples():
    task = identified()
    task.examples = task.examples[:-1]
    with pytest.raises(ValueError, match="got 44 for 45"):
        problem(task)
