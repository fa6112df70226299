"""Pairs from a small file of a user, with no other file: the commands that the docs show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metaopt.problems.reward_model.data.pair import split
from metaopt.problems.reward_model.data.pair_sources import preferences
from metaopt.problems.reward_model.data.text_features import preference_texts

COUNT = 40
TEXT = ("problem=reward_model/text", "problem.task.source.source=pairs.jsonl")
FEATURES = (
    "problem=reward_model",
    "data@problem.task.data=reward_model/preference_texts",
    "problem.task.data.source.source=pairs.jsonl",
)
WEIGHTS = ("problem=reward_model/pair_weights", *FEATURES[1:])


def said(role: str, words: str) -> dict[str, str]:
    return {"role": role, "content": words}


KINDS: dict[str, Any] = {
    "answers": lambda i, good, bad: {"chosen": good, "rejected": bad},
    "prompt": lambda i, good, bad: {"prompt": f"question {i}", "chosen": good, "rejected": bad},
    "dialogues": lambda i, good, bad: {
        "chosen": [said("user", f"question {i}"), said("assistant", good)],
        "rejected": [said("user", f"question {i}"), said("assistant", bad)],
    },
    "messages": lambda i, good, bad: {
        "messages": [said("user", f"question {i}")], "chosen": good, "rejected": bad,
    },
    "several": lambda i, good, bad: {
        "prompt": f"question {i}", "chosen": [good], "rejected": [bad],
    },
}  # fmt: skip


def write(folder: Path, kind: str, count: int = COUNT) -> None:
    rows = [KINDS[kind](i, f"thank you {i}", f"go away {i % 5}") for i in range(count)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (FEATURES, "messages"),
        *(
            pytest.param(*run, marks=pytest.mark.slow)
            for run in (
                *((FEATURES, kind) for kind in KINDS if kind != "messages"),
                (TEXT, "messages"),
                (WEIGHTS, "prompt"),
            )
        ),
    ],
)
def test_a_small_file_runs_at_the_first_try(
    metaopt: Any, tmp_path: Path, command: tuple[str, ...], kind: str
) -> None:
    write(tmp_path, kind)
    done = metaopt(*command, "outer_steps=30", "outer_lr=0.01", "figures=false")
    assert done.code == 0, done.err
    lines = dict(line.split()[:2] for line in done.out.splitlines() if line.startswith("eval/"))
    assert float(lines["eval/held_out_accuracy"]) > (0.4 if command is WEIGHTS else 0.9)


def test_other_names_of_columns_are_given(metaopt: Any, tmp_path: Path) -> None:
    write(tmp_path, "prompt")
    path = tmp_path / "pairs.jsonl"
    path.write_text(path.read_text().replace("chosen", "better").replace("rejected", "worse"))
    done = metaopt(*TEXT, "outer_steps=1")
    assert done.code == 1
    assert "columns={chosen: better, rejected: worse}" in done.err
    columns = {"chosen": "better", "rejected": "worse"}
    assert len(preferences(str(path), columns).pairs) == COUNT


def test_generated_pairs_need_no_file_and_the_prompt() -> None:
    pairs = preferences().pairs
    assert pairs == preferences("generated").pairs
    assert len(pairs) == 480
    chosen = {pair.chosen.partition(". ")[2] for pair in pairs}
    elsewhere = [pair.rejected.partition(". ")[2] in chosen for pair in pairs]
    assert sum(elsewhere) == 240
    training, held_out = split(pairs, 0.75, 0)
    assert (len(training), len(held_out)) == (360, 120)


def test_half_of_the_held_out_pairs_are_the_unlabelled_responses(tmp_path: Path) -> None:
    write(tmp_path, "prompt")
    source = preferences(str(tmp_path / "pairs.jsonl"))
    data = preference_texts(source, runs=2)
    assert data.training.chosen.shape[:2] == (2, 30)
    assert data.responses.shape[:3] == (2, 5, 2)
    assert {name: pairs.chosen.shape[1] for name, pairs in data.tests.items()} == {"held_out": 5}
    with pytest.raises(ValueError, match=r"held_out has 1 pair.* needs two or more"):
        preference_texts(source, runs=2, training=39)


def test_features_of_runs_with_different_words_and_of_equal_prompts(tmp_path: Path) -> None:
    """A run with few words has fewer coordinates; what all texts share is not a coordinate."""
    write(tmp_path, "dialogues", 10)
    data = preference_texts(preferences(str(tmp_path / "pairs.jsonl")), runs=6, training=0.5)
    assert data.training.chosen.abs().amax() < 100
    assert data.training.chosen.isfinite().all()
