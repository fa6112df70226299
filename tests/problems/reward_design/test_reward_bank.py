"""A bank trains all of its rewards at once and tells what a test would have said of each."""

import pytest
import torch
from small_trainings import small_trainer

from metaopt.problems.reward_design.reward_bank import RewardBank
from metaopt.problems.reward_design.training import Training, Trajectories

REWARDS = {"fast": "a := 100 * abs(v2)", "slow": "a := -100 * abs(v2)", "own": "cost := -1"}


@pytest.fixture(scope="module")
def bank():
    return RewardBank(small_trainer(), REWARDS, permutations=20)


def trainings():
    """Return trainings by hand: `fast` succeeds fast, `slow` and `own` fail slowly."""
    made = []
    for number, (speed, won) in enumerate([(0.06, True), (0.01, False), (0.02, False)]):
        observations = torch.full((4, 3, 2), speed + 0.001 * number).half()
        outcome = torch.full((4,), won)
        length = torch.full((4,), 1 if won else 2)
        actions = torch.zeros(4, 2, dtype=torch.uint8)
        episodes = Trajectories(observations, actions, length, outcome, outcome)
        made.append(Training("", 1, [float(won)] * 2, {}, episodes))
    return made


def test_the_figures_of_a_bank_by_hand(bank):
    figures = bank.metrics(None, {"trainings": trainings()})
    assert figures["good"] == pytest.approx(1 / 3)
    for rule in ("hardest", "pairs"):
        assert figures[f"auroc_step_{rule}"] == 1.0
        assert figures[f"auroc_episode_{rule}"] == 0.75  # by sums, `own` prefers short successes
    assert figures["pass_step_hardest"] == pytest.approx(1 / 3)
    assert figures["until_none"] == pytest.approx(2.0, abs=0.5)
    assert figures["best_3_none"] == 1.0


def test_rates_are_of_every_reward_on_every_episode(bank):
    table = bank.bank(trainings(), "episode")
    assert table.rates.shape == (3, 12)
    assert table.rates[0, 0] == pytest.approx(6.0, rel=1e-2)
    assert table.rates[2].tolist() == [-1.0] * 4 + [-2.0] * 8
    assert table.source.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_bank_is_trained_in_one_batch_and_written_to_a_page(bank, tmp_path):
    outer = bank.init_outer(None)
    inner = bank.inner_step(outer, bank.init_inner(outer, None, 0), 1)
    feedback = bank.evaluate(outer, inner, 2)
    assert [training.reward for training in feedback.artifacts] == list(outer)
    assert feedback.cost["environment_steps"] > 3 * 2 * 64
    assert feedback.cost["trainings"] == 3
    inner = bank.observe(outer, inner, feedback)
    assert inner["run"] is None
    assert bank.metrics(outer, inner)["good"] == 0.0  # nothing reaches the goal in 24 steps
    shown = bank.report.deliver(outer, {"trainings": trainings()}, [], tmp_path)
    assert "per step, hardest" in shown
    page = (tmp_path / "bank.md").read_text()
    assert page.index("| fast |") < page.index("| slow |")
    assert "| per episode, pairs | 0.750 |" in page


def test_the_control_of_a_seeded_store_leaves_out_the_same_rewards(bank, monkeypatch):
    searches = {}

    def savings(table, share, threshold, permutations, key, seeded=0, without=False):
        searches[seeded, without] = share
        return {}

    monkeypatch.setattr("metaopt.problems.reward_design.reward_bank.savings", savings)
    bank.metrics(None, {"trainings": trainings()})
    assert set(searches) == {(0, False), (3, False), (3, True)}
    assert searches[3, True] is None


def test_no_phase_of_training_is_refused(bank):
    outer = bank.init_outer(None)
    with pytest.raises(ValueError, match="inner_steps >= 1"):
        bank.evaluate(outer, bank.init_inner(outer, None, 0), 2)


def test_a_text_that_is_no_reward_is_refused():
    with pytest.raises(ValueError, match=r"rewards\['wrong'\]=.*no variable"):
        RewardBank(small_trainer(), {"wrong": "a := 1 * speed"})
