"""Rows about the largest of three digits, in domains of known worth; nothing is fetched."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

from metaopt.data.records import rows_as_records
from metaopt.problems.data_curation.rows import CurationRows

Question = tuple[int, ...]


def generated_rows(
    format: str = "demonstrations",
    count: int = 300,
    meta: int = 60,
    held_out: int = 200,
    noise: float = 0.5,
    seed: int = 0,
) -> CurationRows:
    """Return questions for the largest of three digits, in three domains: right, noisy and wrong.

    Questions of the meta rows and of the held-out rows are in no other part.

    Args:
        format: demonstrations (prompt and completion), preferences (prompt, chosen and rejected) or
            steps (prompt, completions and labels).
        count: training rows of each domain, >= 1.
        meta, held_out: rows without a mistake, >= 1 and >= 0, together below 1000.
        noise: share of wrong rows in the noisy domain, in [0, 1].
        seed: of all rows.

    Raises:
        ValueError: one of these is not met.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}.")
    if min(count, meta) < 1 or held_out < 0 or meta + held_out >= 1000 or not 0 <= noise <= 1:
        raise ValueError(
            f"generated rows need count >= 1, meta >= 1, held_out >= 0, meta + held_out < 1000 and "
            f"0 <= noise <= 1; got {count}, {meta}, {held_out} and {noise}."
        )
    draw, row = random.Random(seed), FORMATS[format]
    questions = list(product(range(10), repeat=3))
    draw.shuffle(questions)
    parts = {"meta": questions[:meta], "held_out": questions[meta : meta + held_out]}
    clean = {
        name: tuple(rows_as_records([row(draw, q, False) for q in asked], name))
        for name, asked in parts.items()
    }
    rest = questions[meta + held_out :]
    training = [
        (record, name)
        for name, share in {"right": 0.0, "noisy": noise, "wrong": 1.0}.items()
        for record in rows_as_records(
            [row(draw, draw.choice(rest), draw.random() < share) for _ in range(count)], name
        )
    ]
    train, domain = zip(*training, strict=True)
    return CurationRows(train, domain, **clean)


def _demonstration(draw: random.Random, asked: Question, wrong: bool) -> dict[str, Any]:
    answer = _other(draw, asked) if wrong else max(asked)
    return {"prompt": _prompt(asked), "completion": f" {answer}"}


def _preference(draw: random.Random, asked: Question, wrong: bool) -> dict[str, Any]:
    answers = [f" {max(asked)}", f" {_other(draw, asked)}"]
    chosen, rejected = reversed(answers) if wrong else answers
    return {"prompt": _prompt(asked), "chosen": chosen, "rejected": rejected}


def _steps(draw: random.Random, asked: Question, wrong: bool) -> dict[str, Any]:
    right = draw.random() < 0.5
    answer = max(asked) if right else _other(draw, asked)
    steps = ["so it is", str(answer)]
    return {"prompt": _prompt(asked), "completions": steps, "labels": [True, right != wrong]}


def _prompt(asked: Question) -> str:
    return "the largest of {} {} {} is".format(*asked)


def _other(draw: random.Random, asked: Question) -> int:
    return draw.choice([x for x in range(10) if x != max(asked)])


FORMATS = {"demonstrations": _demonstration, "preferences": _preference, "steps": _steps}
