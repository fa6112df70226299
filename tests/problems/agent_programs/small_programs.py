"""Small worlds of agent programs: scripted answers, and two types of questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metaopt.engine import Engine
from metaopt.estimators import Score
from metaopt.optimizers import Search
from metaopt.problems.agent_programs import AgentPrograms, Grammar, SimulatedWorkers
from metaopt.problems.agent_programs.workers import Workers

EFFECTS = {
    "accuracy": {"strong": 0.6, "weak": 0.4}, "fixes": 0.3, "breaks": 0.1, "finds": 0.8,
    "alarms": 0.2, "persuades": 0.8, "judges": 0.7,
}  # fmt: skip
OTHER = {**EFFECTS, "accuracy": {"strong": 0.35, "weak": 0.55}, "fixes": 0.5, "judges": 0.2}
SAMPLED = {"accuracy": 0.62, "fixes": 0.1, "breaks": 0.15}
CHECKED = {"accuracy": 0.4, "fixes": 0.5, "breaks": 0.05}


class Scripted(Workers):
    """Workers whose solutions are their answers, taken from lists; 0 is right.

    Args:
        scripts: by method, the rows (N,) that its calls return, in order.
        features: as `Workers.features`.
    """

    names, thresholds, fresh, resplit = ("a",), {}, True, False
    criteria = ("judge", "largest")

    def __init__(self, scripts: dict[str, list[Sequence[int]]], size: int, **features: Any) -> None:
        self.scripts = {name: list(rows) for name, rows in scripts.items()}
        self.size = size
        self.features = {name: np.array(values) for name, values in features.items()}
        self.log: list[tuple[Any, ...]] = []

    def _next(self, method: str, questions: np.ndarray) -> np.ndarray:
        self.log.append((method, *questions.tolist()))
        return np.array(self.scripts[method].pop(0))[questions]

    def solve(self, worker: str, questions: Any, key: int) -> Any:
        return self._next("solve", questions)

    def answers(self, questions: Any, solutions: Any) -> Any:
        return solutions

    def correct(self, questions: Any, solutions: Any) -> Any:
        return solutions == 0

    def score(self, criterion: str, questions: Any, solutions: Any) -> Any:
        return solutions

    def refine(self, questions: Any, solutions: Any, key: int) -> Any:
        return self._next("refine", questions)

    def flags(self, questions: Any, solutions: Any, key: int) -> Any:
        flagged = self._next("flags", questions).astype(bool)
        return flagged, np.array([f"note on {q}" for q in questions], dtype=object)

    def revise(self, questions: Any, solutions: Any, notes: Any, key: int) -> Any:
        assert notes.tolist() == [f"note on {q}" for q in questions]
        return self._next("revise", questions)

    def argue(self, questions: Any, own: Any, other: Any, key: int) -> Any:
        self.log.append(("sides", *own.tolist(), *other.tolist()))
        return self._next("argue", questions)

    def choose(self, questions: Any, candidates: Any, key: int) -> Any:
        return self._next("choose", questions)


def two_types(correlation: float = 0.3, questions: int = 400, **more: Any) -> SimulatedWorkers:
    """Return workers of two types, of which voting helps one and looking through the other."""
    types = {"sampled": SAMPLED, "checked": CHECKED}
    return SimulatedWorkers(types, correlation, questions=questions, **more)


def grammar_of(workers: Workers, **limits: int) -> Grammar:
    return Grammar(workers.names, workers.thresholds, workers.criteria, workers.fresh, **limits)


def search(problem: AgentPrograms, steps: int, seed: int = 0, proposer: Any = None) -> Engine:
    """Return an engine after its run, with the search that is shipped."""
    optimizer = Search(
        proposer or problem.propose, problem.screen, accept="archive", archive_size=None, redraws=5
    )
    engine = Engine(problem, Score(1), optimizer, outer_steps=steps, seed=seed)
    for _ in engine:
        pass
    engine.finish()
    return engine
