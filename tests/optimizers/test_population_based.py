"""Population-based training: who copies whom, what is perturbed, and what is refused."""

import math

import pytest
import torch

from metaopt import Engine, Feedback, Grid, Random, Unroll
from metaopt.engine import tree
from metaopt.engine.population import Members
from metaopt.estimators import PopulationScore
from metaopt.optimizers import Choice, PopulationBased, Uniform
from metaopt.problems.examples import Ridge

VALUES = torch.tensor([0.3, 0.1, 0.9, 0.2, 0.5, 0.4, 0.8, 0.7, 0.6, 0.15], dtype=torch.float64)
PHI = {"log_lr": torch.tensor(-3.0, dtype=torch.float64), "weights": torch.ones(4)}


def told(values=VALUES, key=0, **settings):
    """Return a population after its first values, and its first members."""
    search = PopulationBased(members=len(values), **{"space": Uniform(-6.0, 0.0), **settings})
    search.init(PHI)
    first = search.ask(key)
    search.tell(Feedback(values.min(), artifacts={"values": values}))
    return search, tree.clone(first)


def after(first, parents):
    return {name: value[parents] for name, value in first.outer.items()}


def changed(members, copied):
    """Return by name where entries differ from those that were copied."""
    return {
        name: (value != copied[name]).reshape(len(value), -1)
        for name, value in members.outer.items()
    }


@pytest.mark.parametrize("key", range(5))
def test_truncation_replaces_the_worst_fifth_by_copies_of_the_best_fifth(key):
    search, first = told()
    members = search.ask(key)
    parents = members.parents.tolist()
    for member, parent in enumerate(parents):
        assert parent in (1, 9) if member in (2, 6) else parent == member
    copied = after(first, members.parents)
    for name, differs in changed(members, copied).items():
        assert differs[[2, 6]].all()
        assert not differs[[0, 1, 3, 4, 5, 7, 8, 9]].any()
        factors = (members.outer[name] - copied[name])[[2, 6]].exp()
        near = [torch.isclose(factors, torch.tensor(f, dtype=factors.dtype)) for f in (0.8, 1.2)]
        assert (near[0] | near[1]).all()


def test_each_entry_of_a_copy_is_multiplied_by_a_factor_of_its_own():
    values = torch.linspace(0.0, 1.0, 100, dtype=torch.float64)
    search, first = told(values, fraction=0.5, log=["log_lr"])
    members = search.ask(7)
    copied = after(first, members.parents)
    ratios = (members.outer["weights"] / copied["weights"])[50:].double()
    up = torch.isclose(ratios, torch.tensor(1.2, dtype=torch.float64))
    down = torch.isclose(ratios, torch.tensor(0.8, dtype=torch.float64))
    assert (up | down).all()
    # 200 throws of a fair coin: within five standard deviations of half of them
    assert abs(int(up.sum()) - 100) < 5 * math.sqrt(50)
    assert (up.any(1) & down.any(1)).any()  # one entry of a member up, another down
    assert {*members.parents[50:].tolist()} <= {*range(50)}
    assert len({*members.parents[50:].tolist()}) > 20


def test_resampled_entries_come_from_the_space():
    values = torch.linspace(0.0, 1.0, 40, dtype=torch.float64)
    space = {"log_lr": Uniform(-6.0, 0.0), "weights": Choice([2.0, 3.0])}
    search, first = told(values, space=space, fraction=0.5, resample=1.0)
    members = search.ask(1)
    assert {*members.outer["weights"].flatten().tolist()} == {2.0, 3.0}
    fresh = members.outer["log_lr"][20:]
    assert ((fresh >= -6) & (fresh < 0)).all()
    assert len({*fresh.tolist()} - {*first.outer["log_lr"].tolist()}) == 20


def test_a_tournament_copies_better_members_only():
    search, _ = told(exploit="tournament")
    parents = search.ask(3).parents
    moved = parents != torch.arange(10)
    assert moved.any()
    assert (VALUES[parents][moved] < VALUES[moved]).all()
    assert not moved[1]  # the best meets nobody better


def test_nobody_copies_without_exploiting():
    search, first = told(exploit="none")
    members = search.ask(3)
    assert members.parents.tolist() == list(range(10))
    assert all(torch.equal(members.outer[name], first.outer[name]) for name in first.outer)


@pytest.mark.parametrize("exploit", ["truncation", "tournament"])
def test_members_that_diverged_copy_and_are_not_copied(exploit):
    values = torch.full((6,), torch.inf, dtype=torch.float64)
    values[4] = 1.0
    search, _ = told(values, exploit=exploit, fraction=0.5)
    parents = search.ask(0).parents
    assert parents.tolist() == [4] * 6
    assert search.solution["log_lr"] == search.ask(0).of(4)["log_lr"]


def test_a_grid_starts_the_members():
    pair = Grid({"log_lr": [-1.0, -2.0], "weights": [0.5, 0.7]}, relative=False)
    _, first = told(VALUES[:4], start=pair, exploit="none")
    assert first.outer["log_lr"].tolist() == [-1.0, -1.0, -2.0, -2.0]
    assert torch.equal(first.outer["weights"][1], torch.full((4,), 0.7))


def test_the_solution_is_that_of_the_best_member_of_the_last_step():
    search, first = told()
    assert search.solution["log_lr"] == first.outer["log_lr"][1]
    search.ask(5)
    assert search.solution["log_lr"] == first.outer["log_lr"][1]  # until the next values


WRONG = [
    ({"members": 1}, "members >= 2; got members=1"),
    ({"members": 4, "fraction": 0.2}, "replaces nobody; have fraction >= 0.25"),
    ({"fraction": 0.6}, "0 < fraction <= 0.5"),
    ({"factors": [0.0, 1.2]}, "needs factors > 0, such as"),
    ({"factors": []}, "needs factors > 0, such as"),
    ({"exploit": "best"}, "truncation, tournament, none; got exploit='best'"),
    ({"resample": 2.0}, "0 <= resample <= 1"),
    ({"start": Grid([1.0, 2.0])}, "needs a grid of as many points to start at; start has 2"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PopulationBased(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"log": ["lr"]}, ValueError, "log names \\['lr'\\], which the outer variable lacks"),
        ({"space": {"lr": [1.0]}}, ValueError, "space names \\['lr'\\]"),
    ],
)
def test_names_that_the_outer_variable_lacks_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        PopulationBased(**settings).init(PHI)


def test_a_text_is_no_outer_variable_of_a_population():
    with pytest.raises(TypeError, match="PopulationBased needs an outer variable of named"):
        PopulationBased().init("add drop")


def test_feedback_without_the_members_values_is_refused():
    search = PopulationBased(members=5)
    with pytest.raises(RuntimeError, match="needs an ask first"):
        search.tell(Feedback(0.0))
    search.init(PHI)
    search.ask(0)
    for artifacts in (None, {"values": VALUES}):
        with pytest.raises(TypeError, match="F of each of its 5 members"):
            search.tell(Feedback(0.0, artifacts=artifacts))


def test_estimators_of_one_run_are_refused_before_the_run():
    with pytest.raises(TypeError, match=r"PopulationBased asks for .* and Unroll runs one\. Use"):
        Engine(Ridge(), Unroll(2), PopulationBased(), outer_steps=1)


def test_one_outer_variable_is_scored_as_such():
    engine = Engine(Ridge(), PopulationScore(3), Random(), outer_steps=2)
    assert [feedback.artifacts for _, feedback in engine] == [None, None]
    assert engine.ledger.spent == {"inner_steps": 6, "evaluations": 2, "gradients": 6}


def test_members_give_each_its_part():
    members = Members({"a": torch.arange(6.0).view(3, 2)}, torch.tensor([0, 0, 2]))
    assert members.size == 3
    assert members.of(1)["a"].tolist() == [2.0, 3.0]
