"""Knapsack: the exact optimum, legal moves, a search that pays."""

import itertools

import pytest
import torch

from metaopt import Engine
from metaopt.engine.random import generator
from metaopt.estimators import Score
from metaopt.optimizers import Mutation, Search, reject_known
from metaopt.problems.examples import Knapsack
from metaopt.problems.examples.knapsack import MOVES, draw_instances, empty, follow, optimum


def test_optimum_equals_enumeration():
    result = draw_instances((5, 9), 12, generator(0))
    subsets = torch.tensor(list(itertools.product([0, 1], repeat=9)))
    for i in range(5):
        legal = subsets @ result.weights[i] <= result.capacity[i]
        assert result.optimum[i] == (subsets @ result.values[i])[legal].max()


def test_optimum_ignores_items_heavier_than_the_sack():
    result = optimum(torch.tensor([[9, 2]]), torch.tensor([[99, 3]]), torch.tensor([4]))
    assert result.tolist() == [3]


@pytest.mark.parametrize("text", [*MOVES, "add swap", "add add worst swap", "drop add swap worst"])
def test_packings_are_legal_and_the_best_never_falls(text):
    on = draw_instances((8, 20), 30, generator(0))
    packing = follow("add", on, empty(on), 10, generator(1))
    for step in range(6):
        after = follow(text, on, packing, 5, generator(step))
        assert ((after.packed * on.weights).sum(1) <= on.capacity).all()
        assert (after.best >= packing.best).all()
        assert (after.best <= on.optimum).all()
        packing = after


def test_moves_do_what_they_say():
    on = draw_instances((50, 20), 30, generator(0))
    full = follow("add", on, empty(on), 40, generator(1))
    assert (follow("drop", on, full, 1, generator(2)).packed.sum(1) == full.packed.sum(1) - 1).all()
    swapped = follow("swap", on, full, 1, generator(2)).packed
    assert (swapped.sum(1) == full.packed.sum(1)).all()
    assert ((swapped * on.values).sum(1) >= (full.packed * on.values).sum(1)).all()
    assert (swapped != full.packed).any()
    gone = full.packed & ~follow("worst", on, full, 1, generator(2)).packed
    density = on.values / on.weights
    lowest = torch.where(full.packed, density, torch.inf).min(1).values
    assert torch.equal((gone * density).sum(1), lowest)


def test_a_full_sack_stays_when_nothing_fits():
    on = draw_instances((10, 15), 20, generator(0))
    full = follow("add", on, empty(on), 40, generator(1))
    assert torch.equal(follow("add", on, full, 5, generator(2)).packed, full.packed)


def test_artifacts_are_worst_first():
    problem = Knapsack()
    inner = problem.inner_step("add", problem.init_inner("add", None, 0), 0)
    feedback = problem.evaluate("add", inner, 0)
    gaps = [row["gap"] for row in feedback.artifacts]
    assert gaps == sorted(gaps, reverse=True)
    assert sum(gaps) / len(gaps) == pytest.approx(float(feedback.value))
    assert float(feedback.metrics["inner/gap_max"]) == pytest.approx(gaps[0])


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.slow
def test_search_finds_a_recipe_that_holds_on_new_knapsacks(seed):
    fixed = Engine(Knapsack(), Score(4), Search(), outer_steps=1, seed=seed)
    search = Search(Mutation(vocabulary=list(MOVES)), reject_known)
    engine = Engine(Knapsack(), Score(4), search, outer_steps=60, seed=seed)
    for each in (fixed, engine):
        assert list(each)
    assert fixed.metrics()["eval/test_gap"] > 0.15
    assert engine.metrics()["eval/test_gap"] < 0.05


@pytest.mark.parametrize("recipe", ["", "  ", "add jump"])
def test_unknown_moves_are_named(recipe):
    with pytest.raises(ValueError, match="add, drop, worst, swap"):
        Knapsack(recipe=recipe)


@pytest.mark.parametrize("name", ["items", "instances", "moves", "heaviest"])
def test_wrong_sizes_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        Knapsack(**{name: 0})
