"""The meta-set of chains, GSM8K's recorded solutions, and questions that are shared."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metaopt.problems.process_reward.data.formats import Chain, read
from metaopt.problems.process_reward.data.meta_set import leaked, meta_set, question_key
from metaopt.problems.process_reward.data.process_bench import gsm8k_solutions


def lines(*rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


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
        chosen = meta_set(chains, ["other"], seed=seed)
        assert Counter(c.outcome for c in chosen) == {True: 3, False: 3}
        assert {"q3", "q5"} <= {c.prompt for c in chosen if c.outcome}
        assert len({id(c) for c in chosen}) == 6
        assert meta_set(chains, [], seed=seed) == chosen
        pair = meta_set(chains, [], size=2, seed=seed)
        assert pair[0].prompt == pair[1].prompt
    assert len({tuple(c.prompt for c in meta_set(chains, [], seed=s)) for s in range(5)}) > 1


def test_what_balance_leaves_out_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    chains = [chain(f"q{i}", i < 3) for i in range(8)]
    assert len(meta_set(chains, [], size=2)) == 2
    assert not caplog.messages
    assert len(meta_set(chains, [])) == 6
    assert caplog.messages == [
        "meta-set: 2 of 8 chains are left out, so that half of the others are right (3 are right, "
        "5 wrong)."
    ]


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
    assert "13 of 19 chains have no steps: chains 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, ..." in says
    assert "1 of 19 chains have no outcome: chains 16" in says
    assert "2 of 19 chains ask one of 1 questions of the test set" in says
    assert "(`leaked` finds them): chains 17, 18" in says
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
    local = Path(os.environ.get("METAOPT_DATA", "")) / path
    if not local.exists():
        pytest.skip(f"{local} is missing")
    return local


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
    with pytest.raises(
        ValueError, match="1200 of 5276 chains ask one of 300 questions of the test set"
    ):
        meta_set(chains, test)
    chosen = meta_set(chains[1200:], test, size=500)
    assert Counter(c.outcome for c in chosen) == {True: 250, False: 250}
    assert max(Counter(c.qid for c in chosen).values()) == 2


@pytest.mark.data
def test_every_question_of_process_bench_gsm8k_is_one_of_gsm8ks_test_set() -> None:
    chains = read(data("processbench/gsm8k.json"))
    rows = data("gsm8k/test.jsonl").read_text().splitlines()
    assert leaked(chains, [json.loads(row)["question"] for row in rows]) == list(range(400))
    for other in ("math", "olympiadbench", "omnimath"):
        assert not leaked(read(data(f"processbench/{other}.json")), chains)
