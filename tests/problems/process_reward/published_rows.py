"""Rows as each format publishes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


PRM_BENCH = [
    {
        "idx": 7,
        "question": "2 + 3, doubled?",
        "original_process": ["5", "10"],
        "modified_process": ["5", "11", "So 11."],
        "error_steps": [2, 3],
        "classification": "step_contradiction",
    },
    {"question": "q", "modified_process": ["a"], "error_steps": []},
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
    }
]


SOLUTIONS = [{"query": QUESTION, "response": "12.\nSo 13.", "outcome": False}]


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
    "prm_bench": PRM_BENCH,
    "bigbench_mistake": MISTAKE,
    "solution": SOLUTIONS,
}


def put(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return path
