"""Every format: what a published row says, and rows that come back as they were."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from metaopt.data.process_supervision import FORMATS, Chain, harden, read, rows_of, truncate, write

QUESTION = "Tom has 3 bags of 4 apples. How many apples?"


def dreamprm() -> list[dict[str, Any]]:
    """Five cumulative prefixes as in the repository's README, and a chain that lacks two rows."""
    common = {"ground_truth": "1.5", "image_path": "dataset/1.png", "dataset": "chartqa"}
    texts = [
        "Step 1: Restate.\n\n",
        "Step 2: Look.\n",
        "Step 3: Know.\n\n### ",
        "Step 4: Do.",
        "\n5",
    ]
    rows = [
        {"id": 7, "sid": i + 1, "input": "Your task", "add": "".join(texts[: i + 1]), **common}
        for i in range(5)
    ]
    for row, (score, times) in zip(rows, [(7, 11), (4, 4), (0, 4), (1, 5), (2, 3)], strict=True):
        row |= {"score": score, "times": times, "accuracy": round(score / times, 4)}
    other = [{**rows[i], "id": 8, "input": "Another"} for i in (1, 4)]
    return [*rows, *other]


SYSTEM = {"from": "system", "value": "You are a process supervision model."}


def turn(who: str, value: str) -> dict[str, str]:
    return {"from": who, "value": value}


DREAMPRM15 = [
    {
        "id": -1,
        "image": "images/1.png",
        "conversations": [
            SYSTEM,
            turn("human", "### Question:\nHow many?\n\n### Solution Process:\nThere are 2."),
            turn("gpt", "+"),
            turn("human", "So it is 3.\n"),
            turn("gpt", "-"),
        ],
    }
]
DREAMPRM15_META = [
    {
        "id": "test_Art_113",
        "response": "[Reasoning]\n1. It is D.\nAnswer: D",
        "true_false": False,
        "image": "../data/meta_images/test_Art_113.png",
        "conversations": [
            SYSTEM,
            turn("human", "### Question:\nQuestion: <image 1> was painted by whom?"),
            turn("human", "It is D."),
            turn("gpt", "+"),
            turn("human", "Answer: D"),
            turn("gpt", "+"),
        ],
    }
]
DREAMPRM_META = [
    {
        "id": 2,
        "true_false": True,
        "input": "Question: Which?\nOptions: (A) 1 (B) 2\n\n### Step 1: Restate.\n - see Step 2\n\n"
        "### Step 2: Conclude.\n\nFinal answer: B\n",
        "image_path": "dataset/2.png",
    },
    {"id": 3, "true_false": False, "input": "Question: Which?", "image_path": "dataset/2.png"},
    {"id": 4, "true_false": False, "input": "Q", "response": "Step 1: no", "image_path": "a.png"},
]
STEPWISE = [
    {"prompt": QUESTION, "completions": ["3 * 4 = 12.", "So 13."], "labels": [True, False]},
    {"prompt": "Which is larger?", "completions": ["9.8 is."], "labels": [True], "source": "x"},
]


def completion(text: str, rating: int | None, flagged: bool | None = None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": flagged}


def rated(*completions: Any, chosen: int | None = 0, human: Any = None) -> dict[str, Any]:
    return {
        "completions": list(completions),
        "human_completion": human,
        "chosen_completion": chosen,
    }


def prm800k_line(steps: list[Any], written: list[str] | None, reason: str) -> dict[str, Any]:
    return {
        "labeler": "340d89bc",
        "timestamp": "2023-01-22T04:34:27.052924",
        "generation": 9,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {
            "problem": "What is the greatest common factor?",
            "ground_truth_solution": "It is 40.",
            "ground_truth_answer": "40",
            "pre_generated_steps": written,
            "pre_generated_answer": "320",
            "pre_generated_verifier_score": 0.01,
        },
        "label": {"steps": steps, "total_time": 278270, "finish_reason": reason},
    }


PRM800K = [
    prm800k_line(
        [
            rated(completion("a", 0)),
            rated(completion("b", 1)),
            rated(completion("c", -1), completion("c2", 0, False), chosen=None),
        ],
        ["a", "b", "c", "d", "e"],
        "found_error",
    ),
    prm800k_line(
        [
            rated(completion("x", -1), completion("y", None), completion("z", 1), chosen=2),
            rated(completion("no", -1), chosen=None, human={"text": "mine", "source": "human"}),
            rated(completion("w", None)),
        ],
        None,
        "solution",
    ),
    prm800k_line(
        [
            rated(completion("p", -1), completion("q", -1), chosen=None),
            rated(completion("r", -1), chosen=None, human="own"),
        ],
        ["s"],
        "give_up",
    ),
]


def shepherd(text: str, marks: str, task: str = "GSM8K") -> dict[str, str]:
    pieces = text.split("ки")
    label = "".join(x for pair in zip(pieces, [*marks, ""], strict=True) for x in pair)
    return {"input": text, "label": label, "task": task}


MATH_SHEPHERD = [
    shepherd(
        f"{QUESTION} Step 1: 3 * 4 = <<3*4=12>>12. ки\nStep 2: So 13 - 1. ки\nStep 3: 12 ки", "+--"
    ),
    shepherd("What is 1 + 1? It is 2. ки\nThe answer is: 2 ки \n", "++", "MATH"),
    shepherd("Find $x$. ки\nGiven 2x = 2. Step 1: x = 1 ки", "-+", "MATH"),
]
PROCESS_BENCH = [
    {
        "id": "olympiad-bench-3",
        "generator": "Qwen2-7B-Instruct",
        "problem": QUESTION,
        "steps": ["12.", "13.", "So \\boxed{13}."],
        "final_answer_correct": False,
        "label": 1,
    },
    {
        "id": "gsm8k-0",
        "generator": "Llama-3.1-8B-Instruct",
        "problem": QUESTION,
        "steps": ["12."],
        "final_answer_correct": True,
        "label": -1,
    },
]
MISTAKE = [
    {
        "input": "a b",
        "target": "(A)",
        "answer": " (A)",
        "steps": ["1", "", "3"],
        "mistake_index": 0,
    },
    {"input": "[ {", "target": "} ]", "answer": "} ].", "steps": ["1"], "mistake_index": None},
    {"input": "x", "target": "(G)", "answer": None, "steps": ["1", "2"], "mistake_index": 1},
]
OWN = [
    {
        "qid": "1",
        "domain": "d",
        "prompt": "p",
        "images": ["a.png", "b.png"],
        "steps": ["s", "t", "u"],
        "step_success": [3, 0, None],
        "step_rollouts": [4, 8, None],
        "step_label": [0.75, 0.0, None],
        "outcome": 0,
        "policy": "m",
        "temperature": 0.7,
        "extra": {"stepwise": {"k": [1]}},
    }
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "chain": OWN,
    "dreamprm": dreamprm(),
    "dreamprm15": DREAMPRM15,
    "dreamprm15_meta": DREAMPRM15_META,
    "dreamprm_meta": DREAMPRM_META,
    "stepwise": STEPWISE,
    "prm800k": PRM800K,
    "math_shepherd": MATH_SHEPHERD,
    "process_bench": PROCESS_BENCH,
    "bigbench_mistake": MISTAKE,
}


def put(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return path


def test_every_format_is_tried() -> None:
    assert ROWS.keys() == FORMATS.keys()


@pytest.fixture(params=sorted(ROWS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rows_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    chains = read(put(tmp_path / "a.json", ROWS[name])).chains
    assert rows_of(chains, name) == ROWS[name]
    assert read(tmp_path / "a.json", format=name).chains == chains


def test_chains_come_back_from_the_own_format(name: str, tmp_path: Path) -> None:
    chains = read(put(tmp_path / "a.json", ROWS[name])).chains
    write(tmp_path / "b.jsonl.gz", chains)
    assert read(tmp_path / "b.jsonl.gz").chains == chains
    assert rows_of(read(tmp_path / "b.jsonl.gz").chains, name) == ROWS[name]


def test_chains_from_elsewhere_come_back(name: str, tmp_path: Path) -> None:
    """Steps, question, labels or outcome survive every format; the first error where it ends."""
    steps = ("Step 1: add.", "Step 2: carry?", "Step 3: stop.")
    labels = (1.0, 0.0, None) if name in ("process_bench", "bigbench_mistake") else (1.0, 0.0, 1.0)
    chain = Chain("1 + 1?", steps, labels, outcome=False, qid="4", domain="GSM8K")
    write(tmp_path / "a.json", [chain], name)
    (found,) = read(tmp_path / "a.json").chains
    assert (found.prompt, found.steps) == (chain.prompt, steps)
    if name.endswith("_meta"):
        assert found.labels == (None, None, None)
        assert found.outcome is False
    else:
        assert found.labels == labels


def test_an_edited_label_is_written(tmp_path: Path) -> None:
    """What a format keeps of its rows does not override what the chain says."""
    for name in ("stepwise", "prm800k", "math_shepherd", "process_bench", "dreamprm15"):
        chain = read(put(tmp_path / "a.json", ROWS[name][:1])).chains[0]
        edited = harden(chain, threshold=1.0)
        write(tmp_path / "b.json", [edited], name)
        assert read(tmp_path / "b.json").chains[0].labels[0] == 0.0, name


def one(rows: list[dict[str, Any]], number: int, tmp_path: Path) -> Chain:
    return read(put(tmp_path / "a.json", rows)).chains[number]


def test_dreamprm_keeps_counts_and_merges_missing_steps(tmp_path: Path) -> None:
    whole, partial = read(put(tmp_path / "a.json", dreamprm())).chains
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
    chains = read(put(tmp_path / "a.json", [other, *reversed(rows)])).chains
    assert [len(chain.steps) for chain in chains] == [2, 1]
    assert chains[1].steps == ("Step 1: Differ. Step 2: Too.",)


def test_dreamprm_rows_of_the_fewest_columns(tmp_path: Path) -> None:
    row = {"input": "q", "image_path": "x.png", "dataset": "d", "accuracy": 1}
    rows = [{**row, "add": "Step 1: a Step 2: b"}, {**row, "add": "Step 1: a "}]
    (chain,) = read(put(tmp_path / "a.json", rows)).chains
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
    assert (chain.mask, chain.first_error, chain.outcome) == ((True,) * 3 + (False,) * 2, 2, None)
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
    found = read(put(tmp_path / "some_task.json", MISTAKE)).chains
    assert [chain.labels for chain in found] == [(0.0, None, None), (1.0,), (1.0, 0.0)]
    assert [chain.outcome for chain in found] == [True, True, False]
    assert {chain.domain for chain in found} == {"some_task"}


def test_labels_of_trl_are_of_one_type() -> None:
    hard, soft = Chain("p", ("a",), (1.0,)), Chain("p", ("a",), (0.25,))
    assert rows_of([hard], "stepwise")[0]["labels"][0] is True
    assert [type(row["labels"][0]) for row in rows_of([hard, soft], "stepwise")] == [float, float]


@pytest.mark.parametrize(
    ("name", "labels", "says"),
    [
        ("stepwise", (1.0, None), "step 1 has no label"),
        ("process_bench", (0.5, 0.0), "`harden` rounds"),
        ("bigbench_mistake", (None, 1.0), "labels that are 1 before it"),
        ("math_shepherd", (1.0, None), "`truncate` ends"),
        ("dreamprm15", (0.5, 1.0), "must be 0 or 1"),
        ("dreamprm15_meta", (1.0, 1.0), "outcome is unknown"),
        ("dreamprm_meta", (1.0, 1.0), "outcome is unknown"),
        ("dreamprm", (None, None), "no step with a label"),
        ("prm800k", (1.0, 0.5), "-1, 0, 1 or null"),
    ],
)
def test_what_a_format_cannot_say_is_refused_with_the_count(
    name: str, labels: tuple[float | None, ...], says: str
) -> None:
    good = Chain("p", ("a", "b"), (1.0, 0.0), outcome=True, domain="d")
    bad = Chain("p?", ("a", "b"), labels, qid="it")
    assert len(rows_of([good], name)) in (1, 2)
    with pytest.raises(ValueError, match=r"2 of 3 chains cannot be written") as error:
        rows_of([bad, good, bad], name)
    assert "chain 0 'it': " in str(error.value)
    assert "chain 2 'it': " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("name", "prompt", "step"),
    [
        ("math_shepherd", "Step 1: what?", "a"),
        ("math_shepherd", "Why?", "the tag ки"),
        ("math_shepherd", "The tag ки?", "a"),
        ("dreamprm_meta", "Do\nStep 1: what?", "a"),
        ("dreamprm_meta", "Why?", "a\nStep 2: b"),
        ("dreamprm_meta", "Why?", "a\nFinal answer: b"),
    ],
)
def test_texts_that_hold_a_formats_marks_are_refused(name: str, prompt: str, step: str) -> None:
    with pytest.raises(ValueError, match="its texts hold a mark of the format"):
        rows_of([Chain(prompt, (step,), (1.0,), outcome=True)], name)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"labels": (1.0,)}, "one per step; got 1 for 2"),
        ({"labels": (1.0, 1.5)}, r"in \[0, 1\]"),
        ({"labels": (1.0, float("nan"))}, r"in \[0, 1\]"),
        ({"successes": (1, 2)}, "together"),
        ({"successes": (5, 0), "rollouts": (4, 4)}, "got 5 of 4"),
        ({"successes": (1, None), "rollouts": (4, 4)}, "both its successes"),
    ],
)
def test_a_chain_that_contradicts_itself_is_refused(keep: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Chain("p", ("a", "b"), **keep)


def test_hard_labels_follow_the_rollouts() -> None:
    chain = Chain("p", ("a", "b", "c"), (0.25, 0.0, None), (1, 0, None), (4, 4, None))
    assert harden(chain).labels == (1.0, 0.0, None)
    assert harden(chain, 0.5).labels == (0.0, 0.0, None)
    assert harden(chain).rollouts == chain.rollouts
    assert truncate(harden(chain)).rollouts == (4, 4)


def broken(name: str, change: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the value at each path, by dots, replaced."""
    row: Any = copy.deepcopy(ROWS[name][0])
    for path, value in change.items():
        *before, last = [int(x) if x.isdigit() else x for x in path.split(".")]
        at = row
        for key in before:
            at = at[key]
        at[last] = value
    return row


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("chain", {"steps": "s"}, "'steps' must be a list; got 's'"),
        ("chain", {"steps": [1, 2, 3]}, "'steps' must be a text; got 1"),
        ("chain", {"step_label": [2, 0, 0]}, "'step_label' must be in [0, 1]"),
        ("chain", {"step_rollouts": [1.5, 1, 1]}, "'step_rollouts' must be a whole number"),
        ("chain", {"outcome": 2}, "'outcome' must be true, false, 1 or 0, or null; got 2"),
        ("chain", {"temperature": "hot"}, "'temperature' must be a number"),
        ("chain", {"extra": []}, "'extra' must be an object"),
        ("chain", {"prompt": "\ud800"}, "half of a surrogate pair"),
        ("dreamprm", {"add": " "}, "no such step"),
        ("dreamprm", {"accuracy": 0.9}, "'accuracy' is 0.9, but score / times is 7 / 11"),
        ("dreamprm", {"score": 12}, "got 12 of 11"),
        ("dreamprm", {"score": None}, "given together"),
        ("dreamprm", {"score": None, "times": None, "accuracy": None}, "has neither"),
        ("dreamprm_meta", {"true_false": "yes"}, "'true_false' must be true, false, 1 or 0; got"),
        ("dreamprm15", {"conversations.2.value": "0"}, "must be + or -; got ['0']"),
        ("dreamprm15", {"conversations.1.value": "q"}, "has no step"),
        ("dreamprm15", {"conversations.3.from": "gpt"}, "one gpt turn after it"),
        ("dreamprm15", {"conversations.0": "x"}, "conversations[0] must be"),
        ("dreamprm15", {"conversations": []}, "begin with a human turn"),
        ("dreamprm15_meta", {"conversations.3.value": "-"}, "answers '+' at every step"),
        ("stepwise", {"labels": [True]}, "got 1 for 2 completions"),
        ("stepwise", {"labels": ["yes", True]}, "'labels' must be in [0, 1]"),
        ("prm800k", {"question": "q"}, "'question' must be an object"),
        ("prm800k", {"label.steps.1": 3}, "label.steps[1]: must be an object"),
        ("prm800k", {"label.steps.1.completions.0.rating": 2}, "completion 0 must have a rating"),
        ("prm800k", {"label.steps.1.completions.0.rating": []}, "completion 0 must have a rating"),
        ("prm800k", {"label.steps.1.chosen_completion": 1}, "none of the 1 completions"),
        ("math_shepherd", {"label": "+"}, "no + or - at tag 0 of 3"),
        ("math_shepherd", {"input": "x", "label": "x"}, "must have a step"),
        ("process_bench", {"label": 3}, "'label' must be -1 or a step's index, 0 to 2; got 3"),
        ("process_bench", {"label": None}, "got None"),
        ("process_bench", {"id": 1.5}, "'id' must be a text or a number"),
        ("bigbench_mistake", {"mistake_index": -1}, "must be None or a step's index"),
        ("bigbench_mistake", {"answer": 3}, "'answer' must be a text; got 3"),
    ],
)
def test_a_malformed_row_is_named(
    name: str, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [*ROWS[name], broken(name, change)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"malformed rows of .*a\.jsonl, 1 of {len(rows)}:") as e:
        read(path)
    assert f"{path}:{len(rows)}: " in str(e.value)
    assert says in str(e.value)


def test_a_math_shepherd_label_of_another_text_is_named(tmp_path: Path) -> None:
    row = {**MATH_SHEPHERD[0], "label": MATH_SHEPHERD[0]["label"].replace("bags", "bugs")}
    with pytest.raises(ValueError, match="the text of 'input'"):
        read(put(tmp_path / "a.json", [row]))


def data(folder: str) -> Path:
    path = Path(os.environ.get("METAOPT_DATA", "../shared/data")) / folder
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
    found = []
    for file in sorted(data(folder).iterdir()):
        text = file.read_text()
        rows = (
            json.loads(text)
            if file.suffix == ".json"
            else [json.loads(line) for line in text.splitlines()]
        )
        chains = read(file).chains
        assert rows_of(chains, name) == rows
        assert {chain.domain for chain in chains} == {file.stem}
        for chain, row in zip(chains, rows, strict=True):
            at, count = row[index], len(row["steps"])
            right = count if at == wrong else at
            rest = [] if at == wrong else [0.0] + [None] * (count - at - 1)
            assert list(chain.labels) == [1.0] * right + rest
        found.append(len(chains))
    assert found == counts
    assert len(read(data(folder)).chains) == sum(counts)


@pytest.mark.data
@pytest.mark.parametrize("name", ["stepwise", "dreamprm15", "prm800k", "dreamprm", "chain"])
def test_published_chains_survive_another_format(name: str, tmp_path: Path) -> None:
    known = name in ("stepwise", "dreamprm15", "dreamprm")
    chains = [
        truncate(chain) if known else chain
        for chain in read(data("processbench") / "math.json").chains
    ]
    distinct = list({(chain.prompt, chain.steps): chain for chain in chains}.values())
    write(tmp_path / "a.json", distinct, name)
    found = read(tmp_path / "a.json").chains
    strip = [(c.prompt, [s.strip() for s in c.steps], c.labels) for c in distinct]
    assert sorted(strip, key=str) == sorted(
        [(c.prompt, [s.strip() for s in c.steps], c.labels) for c in found], key=str
    )
