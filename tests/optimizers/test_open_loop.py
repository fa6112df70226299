"""Random search, grids and schedules over tensors, names and plain values."""

import pytest
import torch

from metaopt import Feedback
from metaopt.engine.random import fold, generator
from metaopt.optimizers import (
    Choice,
    Constant,
    Grid,
    Linear,
    Normal,
    Random,
    Schedule,
    Uniform,
)
from metaopt.optimizers.spaces import draw, substitute

TENSORS = {"a": torch.zeros(2), "b": torch.ones(1, dtype=torch.float64)}


def begun(optimizer, outer):
    optimizer.init(outer)
    return optimizer


def run(optimizer, values, done=()):
    asked = []
    for step, value in enumerate(values):
        asked.append(optimizer.ask(fold(0, step)))
        optimizer.tell(Feedback(value, done=step in done))
    return asked


def draws(distribution, like=0.0, count=2000):
    return [distribution(like, generator(fold(1, k))) for k in range(count)]


def test_random_keeps_the_best_and_forms():
    optimizer = begun(Random(), TENSORS)
    asked = run(optimizer, [3.0, 1.0, 2.0])
    assert optimizer.solution["a"].tolist() == asked[1]["a"].tolist()
    assert asked[0]["b"].dtype == torch.float64
    assert not torch.equal(asked[0]["a"], asked[2]["a"])


def test_random_draws_texts_and_actions():
    assert set(run(begun(Random(["x", "y"]), "x"), [0.0] * 20)) == {"x", "y"}
    asked = run(
        begun(Random({"k": Uniform(0, 3, integer=True)}), {"k": 0, "t": "fixed"}), [0.0] * 40
    )
    assert {d["k"] for d in asked} == {0, 1, 2, 3}
    assert {d["t"] for d in asked} == {"fixed"}


def test_random_says_which_space_a_text_needs():
    with pytest.raises(TypeError, match="Give a space"):
        begun(Random(), "a text")


def test_before_the_first_value_the_solution_is_the_initial_one():
    assert begun(Random(["y"]), "x").solution == "x"
    assert begun(Grid(["y"], relative=False), "x").solution == "x"


def test_uniform_covers_its_range():
    drawn = torch.tensor(draws(Uniform(-1.0, 3.0)))
    assert drawn.min() >= -1
    assert drawn.max() < 3
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.1)


def test_log_uniform_is_uniform_on_the_logarithm():
    drawn = torch.tensor(draws(Uniform(1e-4, 1.0, log=True))).log10()
    assert drawn.mean().item() == pytest.approx(-2.0, abs=0.1)
    assert drawn.min() >= -4


def test_normal_is_around_the_initial_value_or_its_mean():
    around = torch.tensor(draws(Normal(std=0.5), like=4.0))
    assert around.mean().item() == pytest.approx(4.0, abs=0.05)
    assert around.std().item() == pytest.approx(0.5, abs=0.03)
    assert torch.tensor(draws(Normal(mean=-1.0), like=4.0)).mean() < 0


def test_choice_fills_tensors_entry_by_entry():
    drawn = draw(Choice([0.5, 2.0]), {"a": torch.zeros(100)}, generator(0))["a"]
    assert set(drawn.tolist()) == {0.5, 2.0}


def test_draw_leaves_names_without_a_distribution():
    drawn = draw({"a": Normal()}, TENSORS, generator(0))
    assert torch.equal(drawn["b"], TENSORS["b"])
    with pytest.raises(ValueError, match=r"\['c'\].*its names are \['a', 'b'\]"):
        draw({"c": Normal()}, TENSORS, generator(0))


def test_substitute_casts_and_broadcasts():
    drawn = substitute(TENSORS, {"a": [1, 2]})
    assert drawn["a"].tolist() == [1.0, 2.0]
    assert drawn["b"] is TENSORS["b"]
    filled = substitute(TENSORS, 7)
    assert filled["a"].tolist() == [7.0, 7.0]
    assert filled["b"].dtype == torch.float64
    assert substitute("a", "b") == "b"


def test_names_of_an_unnamed_variable_are_refused():
    with pytest.raises(ValueError, match="it is 'a text', without names"):
        draw({"x": [1]}, "a text", generator(0))


def test_grid_enumerates_the_product_then_asks_for_the_best():
    grid = begun(
        Grid({"k": [1, 2], "t": ["x", "y", "z"]}, relative=False), {"k": 0, "t": "", "r": 5}
    )
    asked = run(grid, [5.0, 4.0, 3.0, 1.0, 2.0, 6.0, 0.0, -1.0])
    points = [(d["k"], d["t"]) for d in asked]
    assert points[:6] == [(k, t) for k in (1, 2) for t in "xyz"]
    assert points[6:] == [(2, "x")] * 2
    assert all(d["r"] == 5 for d in asked)
    assert grid.size == 6
    assert grid.solution == {"k": 2, "t": "x", "r": 5}


def test_grid_over_the_whole_variable():
    assert run(begun(Grid(["x", "y"], relative=False), "x"), [0.0] * 2) == ["x", "y"]
    offsets = run(begun(Grid([-1, 1]), TENSORS), [0.0] * 2)
    assert [d["b"].item() for d in offsets] == [0.0, 2.0]
    assert run(begun(Grid([1]), 4), [0.0]) == [5]


def test_relative_grid_by_name_leaves_the_rest():
    (drawn,) = run(begun(Grid({"b": [0.5]}), TENSORS), [0.0])
    assert drawn["b"].item() == 1.5
    assert torch.equal(drawn["a"], TENSORS["a"])


def test_grid_first_point_equal_to_the_initial_one_is_recorded():
    grid = begun(Grid(["x", "y"], relative=False), "x")
    run(grid, [1.0, 2.0])
    assert grid.solution == "x"


def test_relative_grid_of_texts_is_refused():
    with pytest.raises(TypeError, match="relative=true"):
        begun(Grid(["x"]), "x")


def test_constant_schedule_is_the_initial_variable_unless_given():
    assert run(begun(Schedule(Constant()), "x"), [0.0] * 2) == ["x", "x"]
    assert run(begun(Schedule(Constant("y")), "x"), [0.0]) == ["y"]
    (drawn,) = run(begun(Schedule(Constant(3.0)), TENSORS), [0.0])
    assert drawn["a"].tolist() == [3.0, 3.0]


def test_linear_schedule_rises_and_falls():
    schedule = Schedule(Linear([[0, 0], [2, 32], [4, 0]], integer=True))
    assert run(begun(schedule, 0), [0.0] * 6) == [0, 16, 32, 16, 0, 0]
    assert Linear([[5, 1.0], [10, 2.0]])(0) == 1.0
    assert Linear([[0, 1], [3, 2]], integer=True)(2) == 2


def test_a_schedule_starts_again_after_an_episode():
    schedule = begun(Schedule(lambda step: "abc"[min(step, 2)]), "")
    assert run(schedule, [0.0] * 7, done={1}) == ["a", "b", "a", "b", "c", "c", "c"]
    assert schedule.solution == "c"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(1.0, 1.0),
        lambda: Uniform(0.0, 1.0, log=True),
        lambda: Uniform(1, 3, log=True, integer=True),
        lambda: Normal(std=0.0),
        lambda: Choice([]),
        lambda: Choice("abc"),
        lambda: Grid({"a": []}),
        lambda: Grid("abc"),
        lambda: Linear([]),
        lambda: Linear([[1, 2], [1, 3]]),
        lambda: Linear([[1, 2, 3]]),
    ],
)
def test_wrong_settings_are_refused(make):
    with pytest.raises(ValueError, match="needs"):
        make()


def test_telling_before_asking_is_refused():
    with pytest.raises(RuntimeError, match="needs an ask"):
        begun(Random(), TENSORS).tell(Feedback(0.0))
