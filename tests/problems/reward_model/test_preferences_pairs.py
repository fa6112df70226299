"""Preference pairs: other forms, label noise and splits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from preference_files import CONVERSATION, GOOD, bare, one

from metaopt.problems.reward_model.data.pairs import (
    Message,
    Pair,
    conversation,
    flip,
    flips,
    noise,
    plain,
    split,
    trl_rows,
)


def test_plain_text_and_conversations_convert_into_each_other() -> None:
    assert conversation(Pair("q", "yes", "no")) == CONVERSATION
    assert conversation(CONVERSATION) is CONVERSATION
    text = Pair("\n\nHuman: q\n\nAssistant:", " yes", " no")
    assert plain(CONVERSATION) == text
    assert plain(text) is text
    with pytest.raises(ValueError, match="role 'tool'"):
        plain(CONVERSATION._replace(prompt=(Message("tool", "x"),)))


@pytest.mark.parametrize("pairs", [[Pair("q", "a", "b", 0.5, 1.0)], [CONVERSATION]])
def test_trl_rows_are_read_back(tmp_path: Path, pairs: list[Pair]) -> None:
    rows = trl_rows(pairs)
    assert [bare(one(tmp_path, row)) for row in rows] == pairs
    assert ("margin" in rows[0]) == (pairs[0].margin is not None)


def test_trl_rows_load_as_a_data_set_with_its_columns() -> None:
    from datasets import Dataset

    plain_rows = Dataset.from_list(trl_rows([Pair("q", "a", "b", 0.5), Pair("r", "c", "d", -1.0)]))
    assert plain_rows.column_names == ["prompt", "chosen", "rejected", "margin"]
    assert plain_rows["margin"][:] == [0.5, -1.0]
    assert Dataset.from_list(trl_rows([CONVERSATION]))[0]["chosen"] == [GOOD]


def test_trl_rows_refuse_what_would_shift_columns() -> None:
    pair = Pair("q", "a", "b")
    with pytest.raises(ValueError, match="1 of 2 pairs have no margin, the first at index 1"):
        trl_rows([pair._replace(margin=1.0), pair])
    with pytest.raises(ValueError, match="not both"):
        trl_rows([pair, CONVERSATION])


def test_flipping_twice_is_the_identity() -> None:
    pairs = tuple(
        Pair(f"p{i}", "a", "b", i - 1.5 if i % 2 else None, 0.0, "s", i) for i in range(6)
    )
    once = flip(pairs, [1, 4])
    assert once[1] == Pair("p1", "b", "a", 0.5, -0.0, "s", 1)
    assert once[4].margin is None
    assert [i for i in range(6) if once[i] != pairs[i]] == [1, 4]
    assert flip(once, [4, 1]) == pairs
    assert flip(pairs, ()) == pairs
    for wrong in ([6], [-1]):
        with pytest.raises(IndexError, match=r"in \[0, 6\)"):
            flip(pairs, wrong)


def test_label_noise_is_seeded_recorded_nested_and_can_be_taken_back() -> None:
    pairs = tuple(Pair(f"p{i}", "a", "b", 1.0 + i, 0.5) for i in range(50))
    noisy = noise(pairs, 0.3, seed=1)
    assert len(noisy.flipped) == 15
    assert [i for i, pair in enumerate(noisy.pairs) if pair.chosen == "b"] == list(noisy.flipped)
    assert [pair.margin for pair in noisy.pairs] == [pair.margin for pair in pairs]
    assert flip(noisy.pairs, noisy.flipped, signed=False) == pairs
    assert noise(pairs, 0.3, seed=1) == noisy
    assert noise(pairs, 0.3, seed=2).flipped != noisy.flipped
    assert set(noisy.flipped) < set(flips(50, 0.4, seed=1))
    assert noise(pairs, 0.0, seed=1) == (pairs, ())
    counts = Counter(i for seed in range(400) for i in flips(10, 0.3, seed))
    assert all(80 < counts[i] < 160 for i in range(10))
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rate in"):
            noise(pairs, rate, seed=0)


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
