"""Judge calibration on a made-up world of sums."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.data.solutions import Solutions
from metaopt.engine import Engine
from metaopt.estimators import Score
from metaopt.llm import Client, Rejected
from metaopt.llm.chat import Message, Parameters, Reply, Usage
from metaopt.optimizers import Search
from metaopt.problems.template_evolution import JudgeCalibration


def sums(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of sums: a good response is short and adds up, a bad one rambles and does not.

    One response in five has the wrong outcome for its looks.
    """
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        a, b = (int(v) for v in draw.integers(2, 90, size=2))
        for _ in range(3):
            good = bool(draw.random() < 0.4)
            said = a + b + (0 if good else int(draw.integers(1, 9)))
            extra = int(draw.integers(0, 2)) if good else int(draw.integers(1, 5))
            lines = [f"{a}+{b}=<<{a}+{b}={said}>>{said}", *["and so it goes on"] * extra]
            outcome = good if draw.random() > 0.2 else not good
            text = "\n".join([*lines, f"A: {said}"])
            rows.append({"query": f"{i}: add {a} and {b}", "response": text, "outcome": outcome})
    return rows


def written(folder: Path) -> Path:
    """Return a user's file of responses with outcomes."""
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sums()))
    return path


class Paid:
    """A judge that costs something, answers like `answer`, and counts what it is asked."""

    model, deterministic, finish = "paid", False, "stop"

    def __init__(self, answer: Any, fails: Any = lambda text: False) -> None:
        self.answer, self.fails = answer, fails
        self.asked: list[str] = []

    async def chat(
        self, role: str, messages: Sequence[Message], parameters: Parameters, rollout: int
    ) -> Reply:
        text = messages[-1]["content"]
        self.asked.append(text)
        if self.fails(text):
            raise Rejected("no", role)
        return Reply(self.answer(text), Usage(10, 5), self.finish, self.model)

    async def close(self) -> None:
        pass


def by_length(text: str) -> str:
    return f"Shorter is better.\nScore: {max(1.0, 9.0 - text.count('goes on')):.1f}"


def make(data: Solutions, **arguments: Any) -> JudgeCalibration:
    client = partial(Client, limits={"lm_calls": 100_000})
    return JudgeCalibration(data, **{"labelled": 60, "client": client, **arguments})


def run(problem: JudgeCalibration, steps: int, seed: int = 0) -> Engine:
    optimizer = Search(problem.propose, problem.screen, redraws=3)
    engine = Engine(problem, Score(1), optimizer, outer_steps=steps, seed=seed)
    for _ in engine:
        pass
    return engine
