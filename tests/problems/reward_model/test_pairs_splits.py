"""Preference pairs: other forms, label noise and splits."""

from __future__ import annotations

from collections import Counter

import pytest
from preference_files import CONVERSATION

from metaopt.problems.reward_model.data.dialogue import conversation, plain
from metaopt.problems.reward_model.data.pair import Message, Pair, flips, split, with_noise


def test_plain_text_and_conversations_convert_into_each_other() -> None:
    assert conversation(Pair("q", "yes", "no")) == CONVERSATION
    assert conversation(CONVERSATION) is CONVERSATION
    text = Pair("\n\nHuman: q\n\nAssistant:", " yes", " no")
    assert plain(CONVERSATION) == text
    assert plain(text) is text
    with pytest.raises(ValueError, match="role 'tool'"):
        plain(CONVERSATION._replace(prompt=(Message("tool", "x"),)))


def test_label_noise_is_seeded_and_nested_and_leaves_margins() -> None:
    pairs = tuple(Pair(f"p{i}", "a", "b", 1.0 + i, 0.5) for i in range(50))
    noisy = with_noise(pairs, 0.3, seed=1)
    wrong = flips(50, 0.3, seed=1)
    assert len(wrong) == 15
    assert tuple(i for i, pair in enumerate(noisy) if pair.chosen == "b") == wrong
    assert noisy[wrong[0]] == pairs[wrong[0]]._replace(chosen="b", rejected="a")
    assert all(noisy[i] == pairs[i] for i in range(50) if i not in wrong)
    assert with_noise(pairs, 0.3, seed=1) == noisy
    assert flips(50, 0.3, seed=2) != wrong
    assert set(wrong) < set(flips(50, 0.4, seed=1))
    assert with_noise(pairs, 0.0, seed=1) == pairs
    counts = Counter(i for seed in range(400) for i in flips(10, 0.3, seed))
    assert all(80 < counts[i] < 160 for i in range(10))
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rate in"):
            flips(50, rate, seed=0)


def test_a_split_keeps_prompts_together_and_is_seeded() -> None:
    pairs = [Pair(f"p{i // 2}" if i < 6 else "", f"a{i}", "b") for i in range(20)]
    for training, count in ((13, 13), (0.5, 10), (0.05, 1)):
        first, other = split(pairs, training, seed=3)
        assert sorted(first + other) == list(range(20))
        assert len(first) == count
        for i in (0, 2, 4):
            assert (i in first) == (i + 1 in first)
    assert split(pairs, 13, seed=3) == split(pairs, 13, seed=3)
    assert split(pairs, 13, seed=3) != split(pairs, 13, seed=4)
    for wrong in (0, 20, 1.0, 0.0, 0.01, -1, float("nan")):
        with pytest.raises(ValueError, match="leaves a pair on either side"):
            split(pairs, wrong, seed=0)
    with pytest.raises(ValueError, match="2 of 2 share one"):
        split(pairs[:2], 1, seed=0)


def test_prompts_that_differ_in_spaces_stay_on_one_side() -> None:
    pairs = [Pair(f"{' ' * (i % 3)}p{i // 3}\n", f"a{i}", "b") for i in range(12)]
    for seed in range(5):
        for side in split(pairs, 6, seed):
            assert len(side) == 3 * len({i // 3 for i in side})
