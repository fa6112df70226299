"""Preference pairs: formats, malformed rows, splits, label noise, and the published files."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections import Counter
from pathlib import Path

import pytest

from metaopt.data.preferences import (
    SHARED,
    Columns,
    Message,
    Pair,
    conversation,
    flip,
    flips,
    noise,
    plain,
    preferences,
    split,
    trl_rows,
)

ROWS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "yes"}
BAD = {"role": "assistant", "content": "no"}
CONVERSATION = Pair(
    (Message("user", "q"),), (Message("assistant", "yes"),), (Message("assistant", "no"),)
)


def write(path: Path, *rows: object) -> str:
    lines = "".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows)
    data = lines.encode(errors="surrogatepass")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def one(tmp_path: Path, row: object) -> Pair:
    (pair,) = preferences(write(tmp_path / "a.jsonl", row)).pairs
    return pair


def bare(pair: Pair) -> Pair:
    return pair._replace(section="", row=0)


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
    found = preferences(str(path))
    assert [p[:3] for p in found.pairs] == [tuple(row.values()) for row in ROWS]
    assert [p.row for p in found.pairs] == [1, 2, 3]
    assert found.pairs[0].margin is None
    assert found.report() == f"{path}: 3 rows, 3 pairs, 0 ties, 0 malformed, 0 cast to text"


def test_columns_margins_strengths_and_sections_are_carried(tmp_path: Path) -> None:
    row = {"q": "p", "good": "a", "bad": "b", "gap": 2, "mean": -0.5, "part": "hard"}
    path = write(tmp_path / "a.jsonl", row)
    found = preferences(path, Columns("q", "good", "bad", "gap", "mean", "part"))
    assert found.pairs == (Pair("p", "a", "b", 2.0, -0.5, "hard", 1),)


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
        {"chosen": ["q", "yes"], "rejected": ["q", "no"]},
    ],
)
def test_conversations_in_every_spelling_are_one_pair(tmp_path: Path, row: object) -> None:
    assert bare(one(tmp_path, row)) == CONVERSATION


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


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "is no JSON"),
        ([1], "type list, not an object"),
        ({"text": "x"}, "has no column 'chosen'; columns are text"),
        ({"chosen": "a"}, "'rejected' is missing"),
        ({"rejected": "a"}, "'chosen' is missing"),
        ({"chosen": None, "rejected": "a"}, "'chosen' is missing"),
        ({"chosen": "a", "rejected": 3}, "'rejected' is a value of type int, not a text"),
        ({"chosen": True, "rejected": "a"}, "type bool"),
        ({"chosen": "a", "rejected": " a\n"}, "'chosen' and 'rejected' are equal"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are equal"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "are equal"),
        ({"prompt": "p", "chosen": "a", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "'chosen' is empty"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "'rejected' is empty"),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant:"}, "'rejected' is empty"),
        ({"chosen": [], "rejected": [USER, BAD]}, "'chosen' is empty"),
        ({"prompt": 1, "chosen": "a", "rejected": "b"}, "'prompt' is a value of type int"),
        ({"chosen": "a", "rejected": [USER, BAD]}, "not of the same kind"),
        ({"chosen": [{"content": "a"}], "rejected": [BAD]}, "list of {role, content}"),
        ({"chosen": [{"role": "user", "content": 1}], "rejected": [BAD]}, "type int"),
        ({"chosen": "a", "rejected": "b", "margin": "1"}, "'margin' must be a finite number"),
        ('{"chosen": "a", "rejected": "b", "margin": NaN}', "'margin' must be a finite number"),
        ({"chosen": "a", "rejected": "b", "strength": True}, "'strength' must be"),
        ('{"chosen": "\\ud800", "rejected": "b"}', "surrogate"),
        ({"instruction": "i", "response1": "a", "response2": "b"}, "'annotator1', ... must be"),
        ({"instruction": "i", "response1": "a", "response2": "b", "annotator1": 3}, "must be 0"),
        ({"instruction": "i", "response1": None, "response2": "b"}, "'response1' is missing"),
        ({"instruction": " ", "response1": "a", "response2": "b"}, "'instruction' is empty"),
        ({"input": "i", "output_1": "a", "output_2": "b", "label": 0}, "'label' must be 1 or 2"),
        ({"input": "i", "output_1": "a", "output_2": "a", "label": 1}, "are equal"),
    ],
)
def test_a_malformed_row_is_refused_or_reported_by_its_number(
    tmp_path: Path, bad: object, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[0], "", bad, ROWS[1])
    with pytest.raises(ValueError, match="1 malformed") as error:
        preferences(path)
    assert "1 in row 3" in str(error.value)
    assert says in str(error.value)
    with caplog.at_level(logging.WARNING):
        found = preferences(path, malformed="report")
    assert [(m.source, m.row) for m in found.malformed] == [("a.jsonl", 3)]
    assert says in found.malformed[0].reason
    assert [p.row for p in found.pairs] == [1, 4]
    assert caplog.messages == [found.report()]


def test_a_report_counts_by_reason_and_quotes_nothing(tmp_path: Path) -> None:
    wrong = [{"chosen": f"secret {i}", "rejected": f"secret {i}"} for i in range(103)]
    path = write(tmp_path / "a.jsonl", ROWS[0], *wrong, {"chosen": "secret", "rejected": ""})
    report = preferences(path, malformed="report").report()
    assert "105 rows, 1 pairs, 0 ties, 104 malformed" in report
    assert "are equal: 103 in row 2, 3, " in report
    assert "101 and 3 more" in report
    assert "'rejected' is empty: 1 in row 105" in report
    assert "secret" not in report


@pytest.mark.parametrize(
    ("name", "data", "error", "says"),
    [
        ("a.json", b"[1,", ValueError, "is no JSON"),
        ("a.jsonl.gz", b"no gzip", ValueError, "cannot be read: BadGzipFile"),
        ("a.jsonl", b"\xff\xfe", ValueError, "cannot be read: UnicodeDecodeError"),
        ("a.parquet", b"no parquet", ValueError, "is no parquet file"),
        ("a.csv", b"", ValueError, "are read from .json"),
        ("a.jsonl", b"", ValueError, "no preference in"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, name: str, data: bytes, error: type[Exception], says: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=says):
        preferences(str(tmp_path / name))


@pytest.mark.parametrize("source", ["missing.jsonl", "a/missing.jsonl", "./a/b", "~/b", "hh"])
def test_a_missing_source_is_named(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="neither hh_harmless, pandalm, llmbar"):
        preferences(source)


@pytest.mark.parametrize("name", SHARED)
def test_a_missing_shared_file_says_where_to_put_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"https://github.*METAOPT_DATA"):
        preferences(name)


def test_an_unknown_treatment_is_refused() -> None:
    with pytest.raises(ValueError, match="one of refuse, report; got 'drop'"):
        preferences("pandalm", malformed="drop")


def test_a_data_set_as_the_hub_holds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`datasets` reads a folder owner/name as it reads a repository of the hub."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Path("owner/name/harmless").mkdir(parents=True)
    write(Path("owner/name/harmless/test.jsonl"), *ROWS, {**ROWS[0], "rejected": ""})
    found = preferences("owner/name", split="test", folder="harmless", malformed="report")
    assert [p[:3] for p in found.pairs] == [tuple(row.values()) for row in ROWS]
    assert found.pairs[0].section == "harmless"
    assert [(m.source, m.row) for m in found.malformed] == [("owner/name (test)", 4)]


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
    found = preferences(write(tmp_path / "a.json", row, other))
    (pair,) = found.ties if tie else found.pairs[:1]
    assert pair.prompt == (Message("user", "i"),)
    assert pair.chosen == (Message("assistant", chosen),)
    assert pair.strength == pytest.approx(strength, abs=1e-15)
    assert found.cast == (("a.json", 2),)
    last = (*found.pairs, *found.ties)[-1] if not tie else found.pairs[0]
    if len(votes) > 2:
        assert last.chosen == (Message("assistant", "True"),)
        assert last.prompt == (Message("user", "i\n\nx"),)


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


@pytest.fixture
def shared() -> Path:
    path = Path(os.environ.get("METAOPT_DATA", "../shared/data")) / "preferences"
    if not path.is_dir():
        pytest.skip(f"{path} is missing")
    return path


@pytest.mark.data
def test_hh_rlhf_is_read_whole(shared: Path) -> None:
    with pytest.raises(ValueError, match="4 malformed"):
        preferences("hh_harmless")
    found = preferences("hh_harmless", malformed="report")
    assert (len(found.pairs), len(found.malformed)) == (2308, 4)
    lines = gzip.decompress((shared / SHARED["hh_harmless"][0]).read_bytes()).splitlines()
    wrong = []
    for pair in found.pairs:
        row = json.loads(lines[pair.row - 1])
        whole = pair.prompt + pair.chosen, pair.prompt + pair.rejected
        if whole != (row["chosen"], row["rejected"]) or not pair.prompt.endswith("\n\nAssistant:"):
            wrong.append(pair.row)
        if plain(conversation(pair)) != pair:
            wrong.append(pair.row)
    assert wrong == []
    assert sum("\n\nHuman:" not in p.chosen + p.rejected for p in found.pairs) == 2308
    sizes = [tuple(map(len, split(found.pairs, 1700, seed))) for seed in range(8)]
    assert sizes == [(1700, 608)] * 8


@pytest.mark.data
def test_pandalm_is_read_whole(shared: Path) -> None:
    found = preferences("pandalm", malformed="report")
    rows = json.loads((shared / SHARED["pandalm"][0]).read_text())
    names = "response1", "response2"
    empty = [i for i, r in enumerate(rows, 1) if not all(str(r[n]).strip() for n in names)]
    assert [m.row for m in found.malformed] == empty
    assert [row for _, row in found.cast] == [
        i for i, r in enumerate(rows, 1) if not all(isinstance(r[n], str) for n in names)
    ]
    votes = [Counter(row[f"annotator{k}"] for k in (1, 2, 3)) for row in rows]
    decided = {i for i, v in enumerate(votes, 1) if max(v[1], v[2]) >= 2}
    assert len(decided) == 894
    assert [pair.row for pair in found.pairs] == sorted(decided - set(empty))
    assert len(found.pairs) + len(found.ties) + len(found.malformed) == 999
    for pair in found.pairs:
        row, vote = rows[pair.row - 1], votes[pair.row - 1]
        winner = 1 if vote[1] > vote[2] else 2
        assert pair.chosen[0].content == str(row[f"response{winner}"])
        assert pair.strength == pytest.approx((vote[winner] - vote[3 - winner]) / 3)


@pytest.mark.data
def test_llmbar_is_read_whole(shared: Path) -> None:
    found = preferences("llmbar")
    assert Counter(p.section for p in found.pairs) == {
        "llmbar_natural": 100,
        "llmbar_neighbor": 134,
        "llmbar_gptinst": 92,
        "llmbar_gptout": 47,
        "llmbar_manual": 46,
    }
    for pair in found.pairs:
        row = json.loads((shared / f"{pair.section}.json").read_text())[pair.row - 1]
        assert pair.chosen[0].content == row[f"output_{row['label']}"]
        assert pair.rejected[0].content == row[f"output_{3 - row['label']}"]
