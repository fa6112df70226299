"""Nine domains of step labels and GSM8K: who is in which part, on small files and on the real."""

from __future__ import annotations

import functools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import process_files

from metaopt.data.final_answers import agree, canonical, final_answer
from metaopt.data.solutions import solutions
from metaopt.problems.process_reward.data.dataset import ProcessData
from metaopt.problems.process_reward.data.meta_set import leaked, question_key
from metaopt.problems.process_reward.data.process_bench import gsm8k_solutions, process_bench
from metaopt.problems.process_reward.model.feature_scorer import FeatureScorer
from metaopt.problems.process_reward.task import ProcessSupervision


def bench(folder: Path, **options: Any) -> ProcessData:
    process_files(folder)
    given = {"source": str(folder), "solutions": str(folder / "solutions.jsonl"), **options}
    return process_bench(**given)


def test_the_parts_share_no_question(tmp_path: Path) -> None:
    data = bench(tmp_path)
    assert data.domains == ("sums", "words")
    held_out = [chain for chains in data.held_out.values() for chain in chains]
    test = [chain for row in data.candidates for chain in row]
    assert Counter(chain.domain for chain in data.train) == {"sums": 14, "words": 14}
    assert {name: len(chains) for name, chains in data.held_out.items()} == {"sums": 6, "words": 6}
    assert not leaked(data.train, [*held_out, *test, *data.meta])
    assert not leaked(held_out, [*test, *data.meta])
    assert not leaked(data.meta, test)
    # the questions "add 0" to "add 19" are those of the domain sums, which leaves twenty
    assert (len(data.meta), len(data.candidates)) == (16, 12)
    assert sum(bool(chain.outcome) for chain in data.meta) == 8
    assert data.quality is None
    assert data.resplit == pytest.approx(12 / 8)  # of twenty questions with solutions


def test_candidates_are_the_systems_answers(tmp_path: Path) -> None:
    data = bench(tmp_path)
    assert data.answers is not None
    for row, answers in zip(data.candidates, data.answers, strict=True):
        number = int(row[0].prompt.split()[1])
        assert [chain.policy for chain in row] == ["by 0", "by 1"]
        assert list(answers) == [str(number), str(number + 1)]
        assert [chain.outcome for chain in row] == [number % 2 == 0, number % 2 == 1]


def test_the_test_is_the_same_for_every_choice_of_domains(tmp_path: Path) -> None:
    every, one = bench(tmp_path), bench(tmp_path, domains=["words"])
    assert one.domains == ("words",)
    assert one.candidates == every.candidates
    assert one.meta == every.meta
    assert [c for c in every.train if c.domain == "words"] == one.train
    assert bench(tmp_path, seed=1).candidates != every.candidates


def test_limits_and_shares(tmp_path: Path) -> None:
    data = bench(tmp_path, limit=3, meta_size=4, held_out_share=0.0)
    assert Counter(chain.domain for chain in data.train) == {"sums": 3, "words": 3}
    assert (len(data.meta), data.held_out) == (4, {})
    data, every = bench(tmp_path, questions=3), bench(tmp_path)
    assert data.candidates == every.candidates[:3]
    assert (data.meta, data.resplit) == (every.meta, pytest.approx(3 / 7))  # the held-out share
    assert bench(tmp_path, questions=9).resplit == pytest.approx(9 / 8)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"held_out_share": 1.0}, r"0 <= held_out_share < 1.*held_out_share=1.0"),
        ({"meta_share": 0.0}, "0 < meta_share < 1.*meta_share=0.0"),
        ({"limit": 0}, "limit >= 1 and questions >= 1; got .*limit=0"),
        ({"questions": 0}, "questions >= 1; got .*questions=0"),
        ({"domains": ["x"]}, "domains must be of sums, words; got x"),
        ({"domains": []}, "domains must be of sums, words; got none"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bench(tmp_path, **wrong)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder bigbench_mistake .*WHGTyen"):
        process_bench(str(tmp_path))
    process_files(tmp_path)
    path = tmp_path / "solutions.jsonl"
    path.write_text("\n".join(path.read_text().split("\n")[:20]))
    with pytest.raises(ValueError, match="0 of 20 questions with solutions are asked by no domain"):
        process_bench(str(tmp_path), str(path))


FOLDER = Path(os.environ.get("METAOPT_DATA", ""))
HERE = all((FOLDER / x).is_dir() for x in ("bigbench_mistake", "processbench", "gsm8k"))
REAL = pytest.mark.skipif(not HERE, reason="the data sets of process supervision are not on disk")


@pytest.mark.slow
@pytest.mark.data
@REAL
def test_the_published_files() -> None:
    data = process_bench()
    assert len(data.domains) == 9
    counted = Counter(chain.domain for chain in data.train)
    for name, chains in data.held_out.items():
        counted[name] += len(chains)
    assert counted["dyck_languages"] == 986
    assert counted["gsm8k"] == 400
    assert sum(counted.values()) == 5_586
    held_out = [chain for chains in data.held_out.values() for chain in chains]
    test = [chain for row in data.candidates for chain in row]
    assert not leaked(data.train, held_out)
    assert not leaked([*data.train, *held_out, *data.meta], test)
    assert not leaked(data.meta, [*data.train, *held_out])
    questions = {question_key(chain.prompt) for chain in gsm8k_solutions()}
    assert len(questions) - 375 == 944
    assert len({question_key(row[0].prompt) for row in data.candidates}) == 566
    assert {len(row) for row in data.candidates} == {4}
    policies = [tuple(chain.policy for chain in row) for row in data.candidates]
    assert len(set(policies)) == 1
    right = np.array([[chain.outcome for chain in row] for row in data.candidates])
    assert right.mean() == pytest.approx(0.39, abs=0.03)
    metrics = ProcessSupervision(data, functools.partial(FeatureScorer, size=2, words=99))._votes
    by_system = dict(zip(policies[0], 100 * right.mean(0), strict=True))
    assert metrics["system_4"] == pytest.approx(by_system["175b_verification"])
    assert metrics["system_4"] == pytest.approx(59.4, abs=0.05)


@pytest.mark.data
@REAL
def test_rules_judge_gsm8k_as_its_authors_did() -> None:
    import json

    lines = (FOLDER / "gsm8k" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    reference = {row["question"]: final_answer(row["answer"]) for row in rows}
    recorded = solutions()
    judged = [
        bool(agree(final_answer(row.response), reference[recorded.queries[row.query]]))
        for row in recorded.rows
    ]
    assert len(judged) == 5_276
    assert judged == [row.outcome for row in recorded.rows]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3 + 4 = 7 apples", "7"),
        ("it is 1,200.50 dollars", "2401/2"),
        ("it costs $3.", "3"),
        ("x\n#### -5", "-5"),
        ("Final answer: 3/4\nbecause 9", "3/4"),
        ("Answer: 6/8", "3/4"),
        ("A: B\n", "b"),
        (r"thus \boxed{\frac{1}{2}} and 3", r"\frac{1}{2}"),
        (r"first \boxed{1} then \boxed{2.0}", "2"),
        (r"open \boxed{3", "3"),
        ("12% of all", "12"),
        ("no number", ""),
        ("", ""),
        ("from 3-5", "5"),
        ("1/0", "1/0"),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("3.0", "3", True),
        ("$1,000", "1000", True),
        ("Paris.", "paris", True),
        ("3", "4", False),
        ("", "4", False),
        ("", "", False),
        ("(a)", "a", None),
        ("three", "3", None),
    ],
)
def test_rules_say_same_different_or_nothing(answer: str, reference: str, same: Any) -> None:
    assert agree(answer, reference) is same


def test_a_canonical_answer_stays_as_it_is() -> None:
    for text in ("3.50", " 1,000. ", "7 %", "A  b.", "9" * 100):
        assert canonical(canonical(text)) == canonical(text)
