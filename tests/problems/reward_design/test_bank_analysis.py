"""What a test would have saved, on banks small enough to count by hand."""

import numpy as np
import pytest

from metaopt.problems.reward_design.bank_analysis import Bank, replay, savings, verdicts


def hardest(rates, won):
    """Share of successes above the best failure; 1 without one of the kinds."""
    if won.all() or not won.any():
        return 1.0
    return float(np.mean(rates[won] > rates[~won].max()))


def bank(success=(0.0, 1.0, 0.9, 0.1)):
    """Make rewards of which 1 and 2 rate every success above every failure, and the others not."""
    success = np.array(success)
    source = np.repeat(np.arange(len(success)), 4)
    won = np.repeat(success > 0.5, 4)
    rates = np.where(success[:, None] > 0.5, won, ~won).astype(float)
    return Bank(success, source, won, rates)


def test_a_test_that_knows_good_rewards_has_perfect_figures():
    figures = verdicts(bank(), hardest, 0.8, 200, 0)
    assert figures == {"auroc": 1.0, "pass": 0.5, "precision": 1.0, "recall": 1.0}


def test_a_test_that_is_wrong_about_one_reward():
    wrong = bank()
    wrong.rates[3] = wrong.won
    figures = verdicts(wrong, hardest, 0.8, 200, 0)
    assert figures["auroc"] == 0.75  # the wrong one ties with both good ones
    assert figures["pass"] == 0.75
    assert figures["precision"] == pytest.approx(2 / 3)
    assert figures["recall"] == 1.0


def test_a_store_of_few_episodes_has_both_kinds():
    shares = []

    def share(rates, won):
        shares.append((won.sum(), len(won)))
        return 1.0

    verdicts(bank(), share, 0.8, 4, 0)
    assert set(shares) == {(2, 4)}


def test_a_search_skips_what_fails_once_both_kinds_are_recorded():
    order, nothing = np.array([0, 1, 3, 2]), np.empty(0, int)
    gated = replay(bank(), order, hardest, 0.8, nothing)
    assert gated == ([0.0, 1.0, 1.0], [1, 2, 4])  # 3 is skipped
    free = replay(bank(), order, None, 0.8, nothing)
    assert free == ([0.0, 1.0, 1.0, 1.0], [1, 2, 3, 4])
    recorded = np.flatnonzero(np.isin(bank().source, [0, 1]))
    assert replay(bank(), order, hardest, 0.8, recorded) == ([1.0, 1.0], [2, 4])


def test_savings_are_means_over_all_orders():
    """Of 4 rewards 2 are good: the first good one is at place 1 + 2/3 of a random order."""
    free = savings(bank(), None, 0.8, 500, 0)
    assert free["until"] == pytest.approx(5 / 3, abs=0.12)  # four standard errors
    assert free["best_6"] == 1.0
    assert free["proposals_6"] == 4
    gated = savings(bank(), hardest, 0.8, 500, 0)
    assert gated["until"] == free["until"]  # no success is recorded before the first one
    assert gated["proposals_6"] == 4


def test_a_seeded_store_finds_the_other_good_reward_at_once():
    seeded = savings(bank(), hardest, 0.8, 50, 0, seeded=3)
    control = savings(bank(), None, 0.8, 50, 0, seeded=3, without=True)
    assert seeded["until"] == 1.0
    assert 1.0 < control["until"] < 2.0


def test_the_control_leaves_out_the_rewards_that_seed_the_store():
    """Reward 1 has one success on record, too few for a pair of 3, so that it is never left out."""
    ragged = bank()
    ragged.won[5:8] = False

    ragged = ragged._replace(success=np.array([0.0, 1.0, 0.6, 0.1]))
    rows = [savings(ragged, None, 0.8, 20, 0, seeded=3, without=w) for w in (False, True)]
    assert rows[0] == rows[1]
    assert rows[0]["solved"] == 1.0


def test_a_test_that_rejects_all_solves_nothing_and_saves_nothing():
    seeded = savings(bank(), lambda rates, won: 0.0, 0.8, 20, 0, seeded=3)
    assert seeded == {
        "best_3": 0.0, "best_6": 0.0, "solved": 0.0, "until": 2.0, "proposals_6": 2.0
    }  # fmt: skip
    assert savings(bank(), hardest, 0.8, 20, 0)["solved"] == 1.0


def test_a_bank_without_a_good_reward_has_chance_figures():
    figures = verdicts(bank((0.0, 0.1)), hardest, 0.8, 200, 0)
    assert (figures["auroc"], figures["precision"], figures["recall"]) == (0.5, 0.0, 0.0)
