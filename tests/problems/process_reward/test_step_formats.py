"""Every format: what a published row says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from published_rows import (
    DREAMPRM15,
    DREAMPRM15_META,
    DREAMPRM_META,
    MATH_SHEPHERD,
    MISTAKE,
    PRM800K,
    PRM_BENCH,
    PROCESS_BENCH,
    QUESTION,
    ROWS,
    dreamprm,
    put,
)

from metaopt.problems.process_reward.data.formats import (
    FORMATS,
    Chain,
    harden,
    read,
    truncate,
    write,
)


def test_every_format_is_tried() -> None:
    assert ROWS.keys() == FORMATS.keys()


@pytest.fixture(params=sorted(ROWS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_chains_come_back_from_the_own_format(name: str, tmp_path: Path) -> None:
    chains = read(put(tmp_path / "a.json", ROWS[name]))
    assert read(tmp_path / "a.json", format=name) == chains
    write(tmp_path / "b.jsonl.gz", chains)
    assert read(tmp_path / "b.jsonl.gz") == chains


def test_a_format_says_what_its_rows_hold(name: str, tmp_path: Path) -> None:
    """Labels and outcomes of published rows are those that the table of formats promises."""
    chains = read(put(tmp_path / "a.json", ROWS[name]))
    form = FORMATS[name]
    assert set(form.columns) <= ROWS[name][0].keys()
    assert any(any(chain.mask) for chain in chains) == form.labels
    assert any(chain.outcome is not None for chain in chains) == bool(form.outcome)


def one(rows: list[dict[str, Any]], number: int, tmp_path: Path) -> Chain:
    return read(put(tmp_path / "a.json", rows))[number]


def test_dreamprm_keeps_counts_and_merges_missing_steps(tmp_path: Path) -> None:
    whole, partial = read(put(tmp_path / "a.json", dreamprm()))
    assert whole.steps[0] == "Step 1: Restate."
    assert whole.steps[2:] == ("Step 3: Know.\n\n###", "Step 4: Do.", "5")
    assert (whole.successes, whole.rollouts) == ((7, 4, 0, 1, 2), (11, 4, 4, 5, 3))
    assert whole.labels == (0.6364, 1.0, 0.0, 0.2, 0.6667)
    assert (whole.qid, whole.domain, whole.images) == ("7", "chartqa", ("dataset/1.png",))
    assert partial.steps[0] == "Step 1: Restate.\n\nStep 2: Look."
    assert len(partial.steps) == 2


def test_dreamprm_rows_of_another_response_are_another_chain(tmp_path: Path) -> None:
    rows = dreamprm()[:2]
    other = {**rows[1], "add": "Step 1: Differ. Step 2: Too."}
    chains = read(put(tmp_path / "a.json", [other, *reversed(rows)]))
    assert [len(chain.steps) for chain in chains] == [2, 1]
    assert chains[1].steps == ("Step 1: Differ. Step 2: Too.",)


def test_dreamprm_rows_of_the_fewest_columns(tmp_path: Path) -> None:
    row = {"input": "q", "image_path": "x.png", "dataset": "d", "accuracy": 1}
    rows = [{**row, "add": "Step 1: a Step 2: b"}, {**row, "add": "Step 1: a "}]
    (chain,) = read(put(tmp_path / "a.json", rows))
    assert chain.steps == ("Step 1: a", "Step 2: b")
    assert chain.labels == (1.0, 1.0)
    assert chain.rollouts == ()


def test_dreamprm_meta_rows_end_before_the_answer(tmp_path: Path) -> None:
    chain = one(DREAMPRM_META, 0, tmp_path)
    assert chain.prompt == "Question: Which?\nOptions: (A) 1 (B) 2"
    assert chain.steps == ("### Step 1: Restate.\n - see Step 2", "### Step 2: Conclude.")
    assert one(DREAMPRM_META, 1, tmp_path).steps == ()
    assert one(DREAMPRM_META, 2, tmp_path).steps == ("Step 1: no",)


def test_dreamprm15_answers_are_labels_but_not_in_its_meta_set(tmp_path: Path) -> None:
    chain = one(DREAMPRM15, 0, tmp_path)
    assert (chain.prompt, chain.steps) == ("How many?", ("There are 2.", "So it is 3.\n"))
    assert chain.labels == (1.0, 0.0)
    meta = one(DREAMPRM15_META, 0, tmp_path)
    assert meta.prompt == "Question: <image 1> was painted by whom?"
    assert meta.steps == ("It is D.", "Answer: D")
    assert (meta.labels, meta.outcome) == ((None, None), False)


def test_prm800k_follows_the_labeler(tmp_path: Path) -> None:
    chain = one(PRM800K, 0, tmp_path)
    assert chain.steps == ("a", "b", "c", "d", "e")
    assert chain.labels == (1.0, 1.0, 0.0, None, None)
    assert (chain.mask, chain.outcome) == ((True,) * 3 + (False,) * 2, None)
    chain = one(PRM800K, 1, tmp_path)
    assert (chain.steps, chain.labels) == (("z", "mine", "w"), (1.0, 1.0, None))
    assert chain.outcome is True
    assert one(PRM800K, 2, tmp_path).steps == ("p",)


def test_math_shepherd_splits_question_and_steps(tmp_path: Path) -> None:
    chain = one(MATH_SHEPHERD, 0, tmp_path)
    assert chain.prompt == QUESTION
    assert chain.steps[0] == "Step 1: 3 * 4 = <<3*4=12>>12."
    assert (chain.labels, chain.domain) == ((1.0, 0.0, 0.0), "GSM8K")
    assert one(MATH_SHEPHERD, 1, tmp_path).steps == ("It is 2.", "The answer is: 2")
    noted = one(MATH_SHEPHERD, 2, tmp_path)
    assert (noted.prompt, noted.steps) == ("Find $x$. Given 2x = 2.", ("Step 1: x = 1",))
    assert noted.labels == (1.0,)


def test_after_the_first_wrong_step_nothing_is_known(tmp_path: Path) -> None:
    chain = one(PROCESS_BENCH, 0, tmp_path)
    assert (chain.labels, chain.mask) == ((1.0, 0.0, None), (True, True, False))
    assert (chain.domain, chain.policy) == ("olympiad-bench", "Qwen2-7B-Instruct")
    assert truncate(chain).steps == ("12.", "13.")
    read_back = read(put(tmp_path / "some_task.json", MISTAKE))
    assert [chain.labels for chain in read_back] == [(0.0, None, None), (1.0,), (1.0, 0.0)]
    assert [chain.outcome for chain in read_back] == [True, True, False]
    assert {chain.domain for chain in read_back} == {"some_task"}


def test_labels_of_trl_are_of_one_type(tmp_path: Path) -> None:
    hard, soft = Chain("p", ("a",), (1.0,)), Chain("p", ("a",), (0.25,))
    for chains, kind in (([hard], bool), ([hard, soft], float)):
        write(tmp_path / "a.json", chains, "stepwise")
        rows = json.loads((tmp_path / "a.json").read_text())
        assert {type(row["labels"][0]) for row in rows} == {kind}
        assert [c.labels for c in read(tmp_path / "a.json")] == [c.labels for c in chains]


def test_a_response_is_a_chain_of_its_lines(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "response": "a\n\nb", "outcome": True, "system": "me"},
        {"question": "r", "response": "c", "outcome": 0},
    ]
    first, second = read(put(tmp_path / "a.json", rows))
    assert (first.prompt, first.steps, first.outcome, first.policy) == ("q", ("a", "b"), True, "me")
    assert (second.prompt, second.steps, second.outcome) == ("r", ("c",), False)


def test_hard_labels_follow_the_rollouts() -> None:
    chain = Chain("p", ("a", "b", "c"), (0.25, 0.0, None), (1, 0, None), (4, 4, None))
    assert harden(chain).labels == (1.0, 0.0, None)
    assert harden(chain, 0.5).labels == (0.0, 0.0, None)
    assert harden(chain).rollouts == chain.rollouts
    assert truncate(harden(chain)).rollouts == (4, 4)


def data(folder: str) -> Path:
    path = Path(os.environ.get("METAOPT_DATA", "")) / folder
    if not path.is_dir():
        pytest.skip(f"{path} is missing")
    return path


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "name", "counts"),
    [
        ("bigbench_mistake", "bigbench_mistake", [986, 300, 300, 300, 300]),
        ("processbench", "process_bench", [400, 1000, 1000, 1000]),
    ],
)
def test_published_files_come_back_whole(folder: str, name: str, counts: list[int]) -> None:
    index, wrong = ("label", -1) if name == "process_bench" else ("mistake_index", None)
    sizes = []
    for file in sorted(data(folder).iterdir()):
        text = file.read_text()
        rows = (
            json.loads(text)
            if file.suffix == ".json"
            else [json.loads(line) for line in text.splitlines()]
        )
        chains = read(file)
        assert {chain.domain for chain in chains} == {file.stem}
        for chain, row in zip(chains, rows, strict=True):
            at, count = row[index], len(row["steps"])
            right = count if at == wrong else at
            rest = [] if at == wrong else [0.0] + [None] * (count - at - 1)
            assert list(chain.labels) == [1.0] * right + rest
        sizes.append(len(chains))
    assert sizes == counts
    assert len(read(data(folder))) == sum(counts)


@pytest.mark.data
def test_published_chains_survive_trls_format(tmp_path: Path) -> None:
    chains = [truncate(chain) for chain in read(data("processbench") / "math.json")]
    write(tmp_path / "a.json", chains, "stepwise")
    again = read(tmp_path / "a.json")
    assert [(c.prompt, c.steps, c.labels) for c in again] == [
        (c.prompt, c.steps, c.labels) for c in chains
    ]


def test_prm_bench_counts_its_wrong_steps_from_one(tmp_path: Path) -> None:
    first, second = read(put(tmp_path / "a.json", PRM_BENCH))
    assert first.steps == ("5", "11", "So 11.")
    assert first.labels == (1.0, 0.0, 0.0)
    assert (first.qid, first.domain) == ("7", "step_contradiction")
    assert second.labels == (1.0,)


@pytest.mark.parametrize("labels", ["[1, 0]", "[True, False]", "[1.0, 0.0]"])
def test_lists_in_csv_are_read_as_json_and_as_python_write_them(
    labels: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    for steps in ('"[""a, b"", ""it\'s""]"', '"[\'a, b\', ""it\'s""]"'):
        path.write_text(f'prompt,completions,labels\nq,{steps},"{labels}"\n')
        (chain,) = read(path)
        assert chain.steps == ("a, b", "it's")
        assert chain.labels == (1.0, 0.0)
    path.write_text('problem,steps,label\nq,"[""a"", ""b""]",1\nq,"[""a""]",-1\n')
    assert [chain.labels for chain in read(path)] == [(1.0, 0.0), (1.0,)]
