import json

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from metaopt.report.figures import (
    Curve,
    binned,
    fit_scale,
    inner_axis,
    learning_curve,
    line,
    log_floor,
    new_figure,
    panels,
    read_curves,
)


def write(folder, *records):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_read_curves_skips_what_is_not_a_number(tmp_path):
    write(
        tmp_path,
        {"outer_step": 1, "inner_step": 3, "outer/loss": 2.0, "eval/x": None},
        {"outer_step": 2, "budget/inner_steps": 8, "outer/loss": 1.0},
        {"outer_step": 2, "budget/inner_steps": 8, "outer/loss": 0.5},
    )
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"outer_step": 3, "outer/lo')
    curve = read_curves(tmp_path / "metrics.jsonl")["outer/loss"]
    assert [part.tolist() for part in curve] == [[1, 2], [3, 8], [2.0, 0.5]]
    assert set(read_curves(tmp_path / "metrics.jsonl", {"eval/x"})) == set()
    assert read_curves(tmp_path / "absent.jsonl") == {}


def test_binned_keeps_the_mean_and_the_length():
    steps = np.arange(1000.0)
    actual = binned(Curve(steps, 2 * steps, steps**2), most=100)
    assert len(actual.outer) == 100
    assert actual.value.mean() == pytest.approx((steps**2).mean())
    np.testing.assert_allclose(actual.inner, 2 * actual.outer)


def test_the_inner_axis_follows_uneven_inner_steps():
    axes = Figure().add_subplot()
    axes.set_xlim(0, 6)
    assert inner_axis(axes, np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 80.0]))
    assert axes.child_axes[0].get_xlabel() == "inner steps"
    axes.figure.draw_without_rendering()
    assert axes.child_axes[0].get_xlim() == pytest.approx((0, 80 + 2 * 20))


@pytest.mark.parametrize("inner", [[np.nan, np.nan], [5.0, 5.0], [0.0, 0.0]])
def test_there_is_no_inner_axis_without_inner_steps(inner):
    axes = Figure().add_subplot()
    assert not inner_axis(axes, np.array([1.0, 2.0]), np.array(inner))
    assert axes.child_axes == []


@pytest.mark.parametrize(
    ("values", "scale"), [([0.01, 2.0], "log"), ([0.1, 2.0], "linear"), ([-1.0, 200.0], "linear")]
)
def test_losses_over_many_decades_get_a_logarithmic_axis(values, scale):
    axes = Figure().add_subplot()
    fit_scale(axes, log_floor(np.array(values)))
    assert axes.get_yscale() == scale


def test_a_logarithmic_axis_has_room_for_the_bands_that_are_near():
    values = np.array([1.0, 500.0])
    assert log_floor(values, np.array([0.2, 300.0])) < 0.2
    assert 0.01 < log_floor(values, np.array([1e-9, 300.0])) < 0.2, "not nine decades long"


def test_one_metric_of_several_things_is_one_panel():
    weights = [f"eval/weight/{domain}" for domain in "abc"]
    names = ["eval/loss", "eval/step_auroc", "eval/uniform/loss", "eval/uniform/other", *weights]
    assert panels(names) == [
        ["eval/loss", "eval/uniform/loss"], ["eval/step_auroc"], ["eval/uniform/other"], weights
    ]  # fmt: skip


@pytest.mark.slow
def test_thirty_metrics_are_several_figures(tmp_path):
    values = {f"eval/metric_{i}": 1.0 for i in range(30)}
    paths = learning_curve(write(tmp_path, *({"outer_step": t, **values} for t in (1, 2))))
    assert [path.stem[len("learning_curves") :] for path in paths] == ["", "_2", "_3", "_4"]
    assert all(path.stat().st_size > 5000 for path in paths)


def test_lines_differ():
    assert len({str(line(index)) for index in range(28)}) == 28


def test_the_style_ends_with_its_block(tmp_path):
    before, path = dict(mpl.rcParams), tmp_path / "new" / "figure.png"
    with new_figure(path, 3, 3):
        assert mpl.rcParams["axes.spines.top"] is False
        assert not path.exists()
    assert dict(mpl.rcParams) == before
    assert path.stat().st_size > 500


@pytest.mark.parametrize("steps", [2, 30, 700])
def test_learning_curve_draws_a_run(tmp_path, steps):
    records = [
        {"outer_step": t, "budget/inner_steps": 4 * t, "outer/loss": 1 / t, "inner/loss": None}
        for t in range(1, steps + 1)
    ]
    records[-1]["eval/test_loss"] = 0.5
    (path,) = learning_curve(write(tmp_path, *records))
    assert path == tmp_path / "figures" / "learning_curves.png"
    assert path.stat().st_size > 5000


def test_one_point_is_no_learning_curve(tmp_path):
    records = [{"outer_step": t, "outer/loss": 1 / t, "eval/a": 1.0} for t in (1, 2)]
    del records[0]["eval/a"]
    assert len(learning_curve(write(tmp_path, *records))) == 1
    assert learning_curve(write(tmp_path, *records[1:])) == []


def test_an_empty_log_has_no_learning_curve(tmp_path):
    assert learning_curve(write(tmp_path, {"outer_step": 1, "outer/loss": None})) == []
    assert not (tmp_path / "figures").exists()
