"""Misspelt hooks are refused; every other name is the problem's own."""

import pytest
import torch

from metaopt import Engine, GradientProblem, Problem, Records, Report
from metaopt.engine.gradient_problem import SampledProblem
from metaopt.engine.hooks import BLACK_BOX, COMMON, GRADIENT, edit_distance
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import BilevelProblem
from metaopt.estimators import Score, Unroll
from metaopt.optimizers import Descent
from metaopt.problems.examples import Knapsack, Ridge

OWN = ("open", "close", "draw", "step", "spent", "start", "run", "advance", "batch", "evaluated")


def public(*kinds):
    names = [{*vars(kind), *kind.__annotations__} for kind in kinds]
    return {name for each in names for name in each if not name.startswith("_")}


def test_the_list_of_hooks_is_what_the_bases_have():
    assert public(BilevelProblem) | {"finish"} == COMMON
    assert public(Problem) - COMMON == BLACK_BOX
    assert public(GradientProblem, SampledProblem) - COMMON == GRADIENT


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("outer_los", "outer_loss"),
        ("init_param", "init_params"),
        ("update_sate", "update_state"),
        ("iner_batch", "inner_batch"),
        ("prepare_bacth", "prepare_batch"),
        ("reports", "report"),
        ("inner_optimiser", "inner_optimizer"),
        ("finsh", "finish"),
        ("metric", "metrics"),
    ],
)
def test_a_near_miss_of_a_hook_is_refused(name, hook):
    kind = type("Mine", (Ridge,), {name: lambda self, *arguments: None})
    with pytest.raises(ValueError, match=rf"Mine\.{name} is never used.*did you mean {hook}\?"):
        kind()


def test_a_missing_hook_is_named_by_its_misspelling():
    class Mine(GradientProblem):
        def init_outer(self, generator):
            return {}

        def outer_los(self, outer, inner, batch):
            return torch.zeros(())

    with pytest.raises(ValueError, match="did you mean outer_loss"):
        Mine()


def test_a_near_miss_in_a_black_box_is_refused():
    kind = type("Mine", (Knapsack,), {"evalute": lambda self, *arguments: None})
    with pytest.raises(ValueError, match="did you mean evaluate"):
        kind()


@pytest.mark.parametrize(
    ("base", "estimator"), [(Ridge, Unroll(2)), (Knapsack, Score(0))], ids=["gradient", "black box"]
)
def test_any_other_name_is_the_problems_own(base, estimator):
    def mine(self, *arguments):
        raise AssertionError("metaopt called a method that is not its own")

    names = OWN if base is Ridge else [name for name in OWN if name != "evaluated"]
    problem = type("Mine", (base,), dict.fromkeys(names, mine))()
    optimizer = Descent(lr=0.1) if base is Ridge else None
    if optimizer is None:
        from metaopt.optimizers import Random

        optimizer = Random(["add", "add swap"])
    engine = Engine(problem, estimator, optimizer, outer_steps=2)
    assert len(list(engine)) == 2
    engine.finish()
    assert engine.metrics()


def test_attributes_of_the_same_names_are_free():
    problem = Ridge()
    for name in OWN:
        setattr(problem, name, torch.zeros(3))
    engine = Engine(problem, Unroll(2), Descent(lr=0.1), outer_steps=2)
    assert len(list(engine)) == 2
    assert problem.inner_optimizer == SGD(lr=0.1)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "abc", 3),
        ("loss", "loss", 0),
        ("los", "loss", 1),
        ("lsos", "loss", 1),
        ("cat", "dog", 3),
    ],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_a_hook_misspelt_in_the_constructor_is_refused():
    class Cold(Ridge):
        def __init__(self):
            super().__init__()
            self.warmstart = False

    with pytest.raises(ValueError, match=r"Cold\.warmstart is never used .* mean warm_start"):
        Engine(Cold(), Unroll(1), Descent("sgd", lr=0.1), outer_steps=1)


@pytest.mark.parametrize(
    ("base", "name", "hook"),
    [(Report, "snapshots", "snapshot"), (Report, "figure", "figures"), (Records, "opens", "open")],
)
def test_a_misspelt_part_of_a_report_or_records_is_refused(base, name, hook):
    with pytest.raises(ValueError, match=f"mean {hook}"):
        type("Mine", (base,), {name: lambda self: None})()
