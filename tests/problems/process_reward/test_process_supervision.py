"""Files, folders, hub data sets; what is malformed in them; GSM8K; the meta-set."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metaopt.problems.process_reward.data.formats import (
    Chain,
    gsm8k_solutions,
    leaked,
    meta_set,
    question_key,
    read,
    rows_of,
    write,
)
from metaopt.problems.process_reward.data.formats.sources import parts

GOOD = {"prompt": "p", "completions": ["a"], "labels": [True]}
BAD = {"prompt": "p", "completions": ["a"], "labels": []}


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def test_every_kind_of_file_gives_the_same_chains(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [GOOD, {**GOOD, "completions": ["b", "c\u2028d"], "labels": [False, True]}]
    (tmp_path / "a.json").write_text(f"\n {json.dumps(rows, indent=2)}\n")
    (tmp_path / "a.jsonl").write_text(f"\n{lines(*rows)}", encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines(*rows).encode()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.md").write_text("no data")
    found = [read(path).chains for path in sorted(tmp_path.glob("a.*"))]
    assert len(found) == 5
    assert all(chains == found[0] for chains in found)
    assert rows_of(found[0], "stepwise") == rows
    assert read(tmp_path).chains == found[0] * 5
    assert {chain.domain for chain in found[0]} == {"a"}
    assert {chain.domain for chain in read(tmp_path, domain="mine").chains} == {"mine"}


def test_a_folder_may_mix_formats(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.jsonl").write_text(lines(GOOD))
    other = {"id": "1", "generator": "", "problem": "p", "steps": ["s"], "label": 0}
    (tmp_path / "y.json").write_text(json.dumps([other]))
    assert [(c.domain, c.labels) for c in read(tmp_path).chains] == [("x", (1.0,)), ("y", (0.0,))]


def test_prefixes_of_a_chain_are_joined_across_files(tmp_path: Path) -> None:
    row = {"id": 1, "input": "q", "dataset": "d", "accuracy": 0.5}
    (tmp_path / "a.jsonl").write_text(lines({**row, "sid": 2, "add": "one two"}))
    (tmp_path / "b.jsonl").write_text(lines({**row, "sid": 1, "add": "one "}))
    (chain,) = read(tmp_path).chains
    assert chain.steps == ("one", "two")


def test_malformed_rows_are_listed_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(GOOD, BAD, "", "{", [1], {"x": 1}, GOOD).encode() + b'"\xff"\n')
    with pytest.raises(ValueError, match=r"malformed rows of .*a\.jsonl, 5 of 7:") as error:
        read(path)
    says = str(error.value).splitlines()
    for line, reason in [
        (2, "'labels' must be one per completion"),
        (4, "is no JSON"),
        (5, "is no object"),
        (6, "its columns are those of no format: x"),
        (8, "is no JSON: 'utf-8' codec"),
    ]:
        assert sum(x.startswith(f"  {path}:{line}: {reason}") for x in says) == 1
    with pytest.warns(UserWarning, match=r"5 of 7, left out") as warned:
        found = read(path, strict=False)
    assert len(found.chains) == 2
    assert [x.split(": ")[0] for x in found.malformed] == [f"{path}:{i}" for i in (2, 4, 5, 6, 8)]
    assert all(x in str(warned[0].message) for x in found.malformed)


def test_malformed_rows_of_an_array_have_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, BAD, GOOD], indent=0))
    line = path.read_text().splitlines().index("{", 2) + 1
    with pytest.raises(ValueError, match=rf"1 of 3:\n  {path}:{line}: 'labels'"):
        read(path)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (f"[{json.dumps(GOOD)},\n{{", 2, "the rest is not read"),
        (f"[{json.dumps(GOOD)}\n{json.dumps(GOOD)}]", 1, "neither , nor ]"),
        (f"[{json.dumps(GOOD)},\n]", 2, "the rest is not read"),
        (f"[{json.dumps(GOOD)}\n]\n{{}}", 2, "followed by more"),
        (f"[\n{json.dumps(GOOD)},", 2, "the rest is not read"),
    ],
)
def test_a_broken_array_is_no_shorter_array(
    tmp_path: Path, text: str, line: int, says: str
) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"1 of 2:\n  .*a\.json:{line}: .*{says}"):
        read(tmp_path / "a.json")


def test_an_array_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[\n"\xff"]')
    with pytest.raises(ValueError, match=r"a\.json:2: is no UTF-8"):
        read(tmp_path / "a.json")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(ValueError, match=r"a\.parquet: is no parquet"):
        read(tmp_path / "a.parquet")


def test_a_broken_gzip_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(lines(*[GOOD] * 50).encode())
    for broken in (b"x", whole[:-12]):
        (tmp_path / "a.jsonl.gz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz: is no whole gzip file"):
            read(tmp_path / "a.jsonl.gz")


def test_many_malformed_rows_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(*["{"] * 103))
    with pytest.raises(ValueError, match=r"103 of 103:(?s:.)*a.jsonl:100: (?s:.)*and 3 more") as e:
        read(tmp_path / "a.jsonl")
    assert "a.jsonl:101: " not in str(e.value)


@pytest.mark.parametrize("text", ["", "\n", "[]"])
def test_a_file_without_chains_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="holds no chain"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("source", ["missing.jsonl", "a/missing.parquet", "./a/b", "~/b", "a"])
def test_a_missing_source_is_named(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="neither a file, nor a folder, nor a data set"):
        read(source)


def test_sources_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no file"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"is none of \.json"):
        read(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="format='x' is none of chain, dreamprm"):
        read(tmp_path / "a.csv", format="x")
    with pytest.raises(ValueError, match=r"must end in \.json"):
        write(tmp_path / "a.parquet", [])


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*arguments: Any, split: str) -> Any:
        asked.append((*arguments, split))
        return datasets.Dataset.from_list([GOOD, {**GOOD, "labels": [True, False]}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"1 of 2:\n  some/name, test row 1: 'labels'"):
        read("some/name", subset="small", split="test")
    assert asked == [("some/name", "small", "test")]
    with pytest.warns(UserWarning, match="left out"):
        (chain,) = read("some/name", strict=False).chains
    assert (chain.domain, chain.labels) == ("name", (1.0,))


def test_a_data_set_that_the_hub_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*arguments: Any, split: str) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(FileNotFoundError, match=r"some/name cannot be read \(ConnectionError\)"):
        parts("some/name", None, "train")


SOLUTIONS = [
    {
        "question": f"How many is {i}?",
        "small": {"solution": f"It is\n\n{i}.\x0c\nA: {i}", "is_correct": True},
        "large": {"solution": "A: 0", "is_correct": i == 0},
    }
    for i in range(3)
]


def test_gsm8k_solutions_are_chains_of_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(*SOLUTIONS))
    chains = gsm8k_solutions(str(tmp_path / "a.jsonl"))
    assert [(c.qid, c.policy, c.outcome) for c in chains[2:4]] == [
        ("1", "small", True),
        ("1", "large", False),
    ]
    assert chains[2].steps == ("It is", "1.\x0c", "A: 1")
    assert chains[2].labels == (None, None, None)


def chain(question: str, outcome: bool | None, steps: tuple[str, ...] = ("s",)) -> Chain:
    return Chain(question, steps, outcome=outcome)


def test_a_meta_set_is_balanced_and_prefers_pairs() -> None:
    chains = [chain(f"q{i}", True) for i in range(20)] + [chain(f"q{i}", False) for i in (3, 5, 40)]
    for seed in range(5):
        found = meta_set(chains, ["other"], seed=seed)
        assert Counter(c.outcome for c in found) == {True: 3, False: 3}
        assert {"q3", "q5"} <= {c.prompt for c in found if c.outcome}
        assert len({id(c) for c in found}) == 6
        assert meta_set(chains, [], seed=seed) == found
        pair = meta_set(chains, [], size=2, seed=seed)
        assert pair[0].prompt == pair[1].prompt
    assert len({tuple(c.prompt for c in meta_set(chains, [], seed=s)) for s in range(5)}) > 1


def test_a_meta_set_with_anything_wrong_is_refused_with_every_count() -> None:
    chains = [
        *[chain("q", True)] * 4,
        *[chain("q", True, ())] * 12,
        chain("r", None),
        chain("LEAK ‘a’", True, (" ", "")),
        chain("leak 'a'", True),
    ]
    with pytest.raises(ValueError, match="no meta-set from these 19 chains") as error:
        meta_set(chains, [Chain("Question:  leak\n'A'", ("x",)), "leak too"])
    says = str(error.value)
    assert "13 of 19 have no steps: chains 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, ..." in says
    assert "1 of 19 have no outcome: chains 16" in says
    assert (
        "2 of 19 ask one of 1 questions of the test set (`leaked` finds them): chains 17, 18"
        in (says)
    )
    assert "18 are right and 0 are wrong" in says
    with pytest.raises(ValueError, match="0 are right and 1 are wrong"):
        meta_set([chain("q", False)], [])


@pytest.mark.parametrize("size", [0, 3, 6, -2])
def test_a_size_that_balance_does_not_allow_is_refused(size: int) -> None:
    chains = [chain(f"q{i}", i < 2) for i in range(9)]
    with pytest.raises(ValueError, match=rf"size={size} must be even and 2 to 4: .* 2 right and 7"):
        meta_set(chains, [], size=size)


def test_questions_are_alike_whatever_their_spaces_and_quotes() -> None:
    same = ["What’s  1 – 1?", "what's 1 - 1?", "### Question:\nQuestion: What's 1 - 1?\u00a0"]
    assert len({question_key(x) for x in same}) == 1
    assert len({question_key(x) for x in ["1 - 1", "1 + 1", "11", "[ ]", "{ }", "( )"]}) == 6
    chains = [chain(x, True) for x in same]
    assert leaked([*chains, chain("What's 1 + 1?", True)], same[:1]) == [0, 1, 2]


def data(path: str) -> Path:
    found = Path(os.environ.get("METAOPT_DATA", "")) / path
    if not found.exists():
        pytest.skip(f"{found} is missing")
    return found


@pytest.mark.data
def test_the_meta_set_of_gsm8k_solutions() -> None:
    path = data("gsm8k/example_model_solutions.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    chains = gsm8k_solutions(str(path))
    outcomes = [r[s]["is_correct"] for r in rows for s in r if isinstance(r[s], dict)]
    assert [c.outcome for c in chains] == outcomes
    texts = [r[s]["solution"] for r in rows for s in r if isinstance(r[s], dict)]
    assert ["\n".join(c.steps) for c in chains] == texts
    test = [r["question"].upper() for r in rows[:300]]
    with pytest.raises(ValueError, match="1200 of 5276 ask one of 300 questions of the test set"):
        meta_set(chains, test)
    found = meta_set(chains[1200:], test, size=500)
    assert Counter(c.outcome for c in found) == {True: 250, False: 250}
    assert max(Counter(c.qid for c in found).values()) == 2


@pytest.mark.data
def test_every_question_of_process_bench_gsm8k_is_one_of_gsm8ks_test_set() -> None:
    chains = read(data("processbench/gsm8k.json")).chains
    rows = data("gsm8k/test.jsonl").read_text().splitlines()
    assert leaked(chains, [json.loads(row)["question"] for row in rows]) == list(range(400))
    for other in ("math", "olympiadbench", "omnimath"):
        assert not leaked(read(data(f"processbench/{other}.json")).chains, chains)
