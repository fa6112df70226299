"""Decision boundaries: what a snapshot holds and that the figure shows it."""

import functools

import pytest
import torch
from matplotlib.image import imread

from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import generator
from metaopt.nn import MLP
from metaopt.problems.meta_pseudo_labels import MetaPseudoLabels
from metaopt.problems.meta_pseudo_labels.data import digits, two_moons
from metaopt.problems.meta_pseudo_labels.report import grid


def started(data):
    made = MetaPseudoLabels(data, MLP, functools.partial(MLP, widths=(4,)), SGD(lr=0.1))
    outer = made.init_outer(generator(0))
    return made, outer, InnerLoop(made).start(outer, None, 1)


@pytest.fixture(scope="module")
def moons():
    return started(two_moons(points=200, test_points=100))


def test_snapshot_holds_the_probabilities_of_the_grid(moons):
    made, outer, inner = moons
    snapshot = made.report.snapshot(outer, inner)
    points, extent = grid(made.data)
    assert extent[0] < made.data.unlabelled[:, 0].min()
    assert extent[3] > made.data.unlabelled[:, 1].max()
    expected = torch.softmax(made.student.evaluate(inner.params, points[250:251]), -1)[0, 1]
    assert snapshot["student"]["probability"][2, 50] == pytest.approx(expected.item())
    metrics = made.metrics(outer, inner)
    assert snapshot["student"]["accuracy"] == metrics["test_accuracy"]
    assert snapshot["teacher"]["accuracy"] == metrics["teacher_accuracy"]


@pytest.mark.slow
def test_figure_has_a_column_for_each_moment(moons, tmp_path):
    made, outer, inner = moons
    snapshot = made.report.snapshot(outer, inner)
    (short,) = made.report.figures([(1, snapshot), (2, snapshot)], tmp_path / "short")
    (long,) = made.report.figures([(k, snapshot) for k in range(1, 10)], tmp_path / "long")
    assert imread(long).shape[1] > 1.8 * imread(short).shape[1]
    assert imread(long)[..., :3].std() > 0.05


def test_one_sided_boundary_is_drawn(moons, tmp_path):
    made, outer, inner = moons
    snapshot = made.report.snapshot(outer, inner)
    snapshot["teacher"] = {"probability": torch.full((100, 100), 0.9), "accuracy": 50.0}
    assert made.report.figures([(1, snapshot)], tmp_path)[0].is_file()


def test_images_have_no_boundaries():
    made, _, _ = started(digits())
    assert made.report is None
