"""Preference pairs: formats, annotators, and the published files."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from preference_files import BAD, CONVERSATION, GOOD, ROWS, USER, bare, one, write

from metaopt.problems.reward_model.data.dialogue import conversation, plain
from metaopt.problems.reward_model.data.pair import Message, Pair, split
from metaopt.problems.reward_model.data.pair_rows import COLUMNS
from metaopt.problems.reward_model.data.pair_sources import preferences
from metaopt.problems.reward_model.data.text_features import preference_texts


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "array.json", "array.json.gz", "a.parquet"]
)
def test_every_kind_of_file_says_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        write(path, *([json.dumps(ROWS, indent=1)] if "array" in name else ROWS))
    result = preferences(str(path))
    assert [p[:3] for p in result.pairs] == [tuple(row.values()) for row in ROWS]
    assert [p.row for p in result.pairs] == [1, 2, 3]
    assert result.pairs[0].margin is None
    assert result.report() == f"{path}: 3 rows, 3 pairs, 0 ties, 0 malformed, 0 cast to text"


def test_numbers_of_csv_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,margin,section\np,7,8,0.5,hard\nq,yes,no,,\n")
    assert preferences(str(path)).pairs == (
        Pair("p", "7", "8", 0.5, None, "hard", 1),
        Pair("q", "yes", "no", None, None, "a", 2),
    )
    path.write_text("input,output_1,output_2,label\nq,yes,no,1\nq,yes,no,2\n")
    assert [pair.chosen[0].content for pair in preferences(str(path)).pairs] == ["yes", "no"]
    path.write_text("prompt,chosen,rejected,margin\np,a,b,large\n")
    with pytest.raises(ValueError, match="'margin' must be a finite number"):
        preferences(str(path))


def test_columns_margins_strengths_and_sections_are_carried(tmp_path: Path) -> None:
    row = {"q": "p", "good": "a", "bad": "b", "gap": 2, "mean": -0.5, "part": "hard"}
    path = write(tmp_path / "a.jsonl", row)
    result = preferences(path, dict(zip(COLUMNS, row, strict=True)))
    assert result.pairs == (Pair("p", "a", "b", 2.0, -0.5, "hard", 1),)


def test_several_sources_are_one(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.jsonl", row) for n, row in zip("ab", ROWS, strict=False)]
    assert [(p.prompt, p.section) for p in preferences(paths).pairs] == [("p0", "a"), ("p1", "b")]


def test_a_dialogue_is_cut_after_the_marker_of_the_last_common_turn(tmp_path: Path) -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    row = {"chosen": f"{start} same word", "rejected": f"{start} same other"}
    pair = one(tmp_path, row)
    assert pair[:3] == (start, " same word", " same other")
    turns = conversation(pair)
    assert turns.prompt == (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert turns.chosen == (Message("assistant", "same word"),)
    assert plain(turns) == pair
    earlier = {"chosen": f"{start} x\n\nHuman: y\n\nAssistant: z", "rejected": f"{start} w"}
    pair = one(tmp_path, earlier)
    assert pair.prompt == start
    assert [m.role for m in conversation(pair).chosen] == ["assistant", "user", "assistant"]
    assert plain(conversation(pair)) == pair


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        ("<|user|>\nq", "a"),
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>"),
        ("User: q\n", "a"),
        ("Human: q\n\nAssistant:", " a"),
        ("q", "<|user|>\nq\n<|assistant|>\na"),
    ],
)
def test_texts_that_end_with_an_answer_are_read(tmp_path: Path, prompt: str, chosen: str) -> None:
    row = {"prompt": prompt, "chosen": chosen, "rejected": f"{chosen} b"}
    assert one(tmp_path, row)[:3] == tuple(row.values())


def test_texts_without_turns_keep_their_whole_sides(tmp_path: Path) -> None:
    assert one(tmp_path, {"chosen": "the cat", "rejected": "the dog"})[:3] == (
        "",
        "the cat",
        "the dog",
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "yes", "rejected": "no"},
        {"messages": [USER], "chosen": "yes", "rejected": "no"},
        {
            "chosen": [{**USER, "role": "human"}, {**GOOD, "role": "gpt"}],
            "rejected": [{**USER, "role": "human"}, {**BAD, "role": "gpt"}],
        },
    ],
)
def test_conversations_in_every_spelling_are_one_pair(tmp_path: Path, row: object) -> None:
    assert bare(one(tmp_path, row)) == CONVERSATION


def test_several_answers_make_a_pair_of_each_two(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": ["yes"], "rejected": ["no", "never"]}
    turns = {"prompt": "q", "chosen": [[GOOD]], "rejected": [[BAD], [{**BAD, "content": "never"}]]}
    for answers in (row, turns):
        result = preferences(
            write(tmp_path / "a.jsonl", answers, {**answers, "chosen": []}, ROWS[0]),
            malformed="report",
        )
        assert [plain(pair).rejected.strip() for pair in result.pairs] == ["no", "never", "bad 0"]
        assert [pair.row for pair in result.pairs] == [1, 1, 3]
        assert "3 rows, 3 pairs, 0 ties, 1 malformed" in result.report()
    both = preferences(write(tmp_path / "a.jsonl", {**row, "chosen": ["yes", "sure"]})).pairs
    assert [(p.chosen, p.rejected) for p in both] == [
        ("yes", "no"),
        ("yes", "never"),
        ("sure", "no"),
        ("sure", "never"),
    ]
    with pytest.raises(ValueError, match="'chosen' and 'rejected' are equal"):
        preferences(write(tmp_path / "a.jsonl", {**row, "chosen": ["yes", "no"]}))


@pytest.mark.parametrize(
    ("votes", "tie", "chosen", "strength"),
    [
        ((1, 1, 1), False, "a", 1.0),
        ((2, 2, 2), False, "b", 1.0),
        ((1, 2, 2), False, "b", 1 / 3),
        ((1, 0, 1), False, "a", 2 / 3),
        ((0, 0, 2), True, "a", -1 / 3),
        ((0, 1, 2), True, "a", 0.0),
        ((0, 0, 0), True, "a", 0.0),
        ((1, 2), True, "a", 0.0),
    ],
)
def test_annotators_are_counted(
    tmp_path: Path, votes: tuple[int, ...], tie: bool, chosen: str, strength: float
) -> None:
    row = {"instruction": "i", "input": "", "response1": "a", "response2": "b"}
    row |= {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}
    other = {**row, "response1": True, "input": "x", "annotator1": 1, "annotator2": 1}
    result = preferences(write(tmp_path / "a.json", row, other))
    (pair,) = result.ties if tie else result.pairs[:1]
    assert pair.prompt == (Message("user", "i"),)
    assert pair.chosen == (Message("assistant", chosen),)
    assert pair.strength == pytest.approx(strength, abs=1e-15)
    assert result.cast == (("a.json", 2),)
    last = (*result.pairs, *result.ties)[-1] if not tie else result.pairs[0]
    if len(votes) > 2:
        assert last.chosen == (Message("assistant", "True"),)
        assert last.prompt == (Message("user", "i\n\nx"),)


@pytest.fixture
def shared() -> Path:
    path = Path(os.environ.get("METAOPT_DATA", "")) / "preferences"
    if not path.is_dir():
        pytest.skip(f"{path} is missing")
    return path


@pytest.mark.slow
@pytest.mark.data
def test_hh_rlhf_is_read_whole(shared: Path) -> None:
    with pytest.raises(ValueError, match="4 malformed"):
        preferences("hh_harmless")
    result = preferences("hh_harmless", malformed="report")
    assert (len(result.pairs), len(result.malformed)) == (2308, 4)
    lines = gzip.decompress((shared / "hh_harmless_base_test.jsonl.gz").read_bytes()).splitlines()
    wrong = []
    for pair in result.pairs:
        row = json.loads(lines[pair.row - 1])
        whole = pair.prompt + pair.chosen, pair.prompt + pair.rejected
        if whole != (row["chosen"], row["rejected"]) or not pair.prompt.endswith("\n\nAssistant:"):
            wrong.append(pair.row)
        if plain(conversation(pair)) != pair:
            wrong.append(pair.row)
    assert wrong == []
    assert sum("\n\nHuman:" not in p.chosen + p.rejected for p in result.pairs) == 2308
    sizes = [tuple(map(len, split(result.pairs, 1700, seed))) for seed in range(8)]
    assert sizes == [(1700, 608)] * 8


@pytest.mark.data
def test_pandalm_is_read_whole(shared: Path) -> None:
    result = preferences("pandalm", malformed="report")
    rows = json.loads((shared / "pandalm_testset_v1.json").read_text())
    names = "response1", "response2"
    empty = [i for i, r in enumerate(rows, 1) if not all(str(r[n]).strip() for n in names)]
    assert [m.row for m in result.malformed] == empty
    assert [row for _, row in result.cast] == [
        i for i, r in enumerate(rows, 1) if not all(isinstance(r[n], str) for n in names)
    ]
    votes = [Counter(row[f"annotator{k}"] for k in (1, 2, 3)) for row in rows]
    decided = {i for i, v in enumerate(votes, 1) if max(v[1], v[2]) >= 2}
    assert len(decided) == 894
    assert [pair.row for pair in result.pairs] == sorted(decided - set(empty))
    assert len(result.pairs) + len(result.ties) + len(result.malformed) == 999
    for pair in result.pairs:
        row, vote = rows[pair.row - 1], votes[pair.row - 1]
        winner = 1 if vote[1] > vote[2] else 2
        assert pair.chosen[0].content == str(row[f"response{winner}"])
        assert pair.strength == pytest.approx((vote[winner] - vote[3 - winner]) / 3)


@pytest.mark.data
def test_llmbar_is_read_whole(shared: Path) -> None:
    result = preferences("llmbar")
    assert Counter(p.section for p in result.pairs) == {
        "llmbar_natural": 100,
        "llmbar_neighbor": 134,
        "llmbar_gptinst": 92,
        "llmbar_gptout": 47,
        "llmbar_manual": 46,
    }
    for pair in result.pairs:
        row = json.loads((shared / f"{pair.section}.json").read_text())[pair.row - 1]
        assert pair.chosen[0].content == row[f"output_{row['label']}"]
        assert pair.rejected[0].content == row[f"output_{3 - row['label']}"]


def test_judge_bench_names_the_better_answer(tmp_path: Path) -> None:
    row = {"question": "q", "response_A": "a", "response_B": "b"}
    labels = ["A>B", "B>A", "A=B"]
    path = write(tmp_path / "a.jsonl", *({**row, "label": label} for label in labels))
    result = preferences(path)
    assert [p.chosen[0].content for p in result.pairs] == ["a", "b"]
    assert [p.prompt[0].content for p in result.pairs] == ["q", "q"]
    assert len(result.ties) == 1


def test_alternatives_of_rm_bench_are_pairs_and_no_dialogue(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}
    result = preferences(write(tmp_path / "a.jsonl", row))
    assert {(p.chosen, p.rejected) for p in result.pairs} == {
        (good, bad) for good in "abc" for bad in "xyz"
    }


def test_dialogues_in_csv_are_read_as_dialogues(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    sides = [json.dumps([USER, said]).replace('"', '""') for said in (GOOD, BAD)]
    path.write_text(f'chosen,rejected\n"{sides[0]}","{sides[1]}"\n"[""a""]","[1]"\n')
    dialogues, texts = preferences(str(path)).pairs
    expected = preferences(
        write(tmp_path / "b.jsonl", {"chosen": [USER, GOOD], "rejected": [USER, BAD]})
    )
    assert dialogues[:3] == expected.pairs[0][:3]
    assert texts[:3] == ("", "a", "[1]")  # a list of something else is a text


def table(path: Path, *rows: dict[str, object]) -> str:
    """Write rows as pandas does, lists in Python's notation."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("written", [str, json.dumps])
def test_lists_in_csv_are_read_as_in_json(tmp_path: Path, written: Callable[..., str]) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "q", "chosen": ['it\'s "a"', "b"], "rejected": ["c"]},
        {"prompt": "q", "chosen": [[GOOD]], "rejected": [[BAD]]},
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ]
    cells = [{k: v if k == "prompt" else written(v) for k, v in row.items()} for row in rows]
    expected = preferences(write(tmp_path / "a.jsonl", *rows)).pairs
    read = preferences(table(tmp_path / "a.csv", *cells)).pairs
    assert [pair[:3] for pair in read] == [pair[:3] for pair in expected]
    # What JSON holds as a text is one answer: it has lists of its own.
    texts = preferences(write(tmp_path / "b.jsonl", cells[0])).pairs
    assert [pair.chosen for pair in texts] == [cells[0]["chosen"]]


@pytest.mark.parametrize(
    "chosen",
    [
        "['a' 'b']",  # of numpy: Python would join the texts
        f"[{USER}\n {GOOD}]",
        '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]',
        "[{'role': 'user', 'content': open('x')}]",
    ],
)
def test_lists_in_csv_that_cannot_be_read_are_refused(tmp_path: Path, chosen: str) -> None:
    path = table(tmp_path / "a.csv", {"chosen": chosen, "rejected": "['c']"})
    with pytest.raises(ValueError, match="'chosen' begins as a list"):
        preferences(path)


def test_a_transfer_set_may_be_a_source_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "other.jsonl", *ROWS)
    source = preferences("generated")
    options = {"runs": 1, "unlabelled": "held_out"}
    named = preference_texts(source, {"other": path}, **options)
    read = preference_texts(source, {"other": preferences(path)}, **options)
    assert torch.equal(named.tests["other"].chosen, read.tests["other"].chosen)
