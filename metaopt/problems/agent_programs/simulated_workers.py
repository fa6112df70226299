"""Simulated workers: each type of question has its own effect of each block, all stated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metaopt.engine.random import fold
from metaopt.engine.ranges import check_ranges
from metaopt.problems.agent_programs.programs import JUDGE
from metaopt.problems.agent_programs.workers import Flags, Ints, Workers

RIGHT = 0
"""The right answer; the wrong ones are 1, 2, ..., of which 1 is the one that is shared."""


class Effects(NamedTuple):
    """What the blocks do on questions of one type; all are probabilities.

    Args:
        accuracy: of one `solve`, by worker.
        fixes, breaks: that a revision makes a wrong solution right, and a right one wrong. `refine`
            revises every solution, `critique` those that are flagged.
        finds, alarms: that a critic flags a wrong solution, and a right one.
        persuades: that a side of a debate, where exactly one side is right, states the right answer
            after it, and not the other one.
        judges: that a judge picks a right candidate where there is one; else it picks a candidate
            at random.
    """

    accuracy: Mapping[str, float]
    fixes: float = 0.0
    breaks: float = 0.0
    finds: float = 0.5
    alarms: float = 0.5
    persuades: float = 0.5
    judges: float = 0.0


class SimulatedWorkers(Workers):
    """Questions of several types, whose answers are drawn; everything is known of them.

    A question has a type, each with the same probability, and with probability c (`correlation`)
    its errors are shared: then every `solve` of a worker gives the same answer, right with the
    worker's accuracy p and else the wrong answer 1. On any other question each call is right with
    probability p by itself, and else one of `wrong_answers` wrong answers at random. So each call
    is right with probability p whatever c is, the correlation of two calls is c, and voting cannot
    rise above c p + (1 - c). One uniform number of a question decides for all workers whether the
    shared answer is right: the weaker one is wrong where the stronger one is.

    Revisions, critics, debates and judges err independently at each call (see `Effects`).

    Features are the types: the question's label, which is another type with probability
    `label_error`.

    Args:
        types: effects by type, as in `Effects`; an accuracy that is a number is that of the only
            worker, `solver`.
        correlation: c in [0, 1].
        wrong_answers: >= 1.
        label_error: in [0, 1].
        questions: how many are drawn, >= 2.
        seed: another seed is other questions.

    Raises:
        ValueError: an argument outside its range, types of different workers, or no type.
    """

    criteria = (JUDGE,)
    resplit = False

    def __init__(
        self,
        types: Mapping[str, Mapping[str, Any]],
        correlation: float = 0.0,
        wrong_answers: int = 3,
        label_error: float = 0.0,
        questions: int = 1200,
        seed: int = 0,
    ) -> None:
        self.correlation, self.wrong_answers = correlation, wrong_answers
        self.label_error, self.questions = label_error, questions
        check_ranges(
            self, "0 <= correlation <= 1", "wrong_answers >= 1", "0 <= label_error <= 1",
            "questions >= 2",
        )  # fmt: skip
        self.types = {name: _effects(name, stated) for name, stated in types.items()}
        self.names = _worker_names(self.types)
        self.size = questions
        draw = np.random.default_rng(fold(seed, "simulated questions"))
        self.type = draw.integers(len(self.types), size=questions)
        self.shared = draw.random(questions) < correlation
        self.luck = draw.random(questions)
        label = self.type.copy()
        if len(self.types) > 1:
            off = draw.random(questions) < label_error
            label[off] = (label + draw.integers(1, len(self.types), size=questions))[off]
            label %= len(self.types)
        self.features = {t: (label == i).astype(np.int64) for i, t in enumerate(self.types)}
        self.thresholds = dict.fromkeys(self.types, (0,))

    def solve(self, worker: str, questions: Ints, key: int) -> Ints:
        """Return a draw, or the shared answer."""
        name = worker or self.names[0]
        accuracy = np.array([effects.accuracy[name] for effects in self.types.values()])
        accuracy = accuracy[self.type[questions]]
        draw = np.random.default_rng(key)
        right = draw.random(len(questions)) < accuracy
        wrong = draw.integers(1, self.wrong_answers + 1, size=len(questions))
        common = np.where(self.luck[questions] < accuracy, RIGHT, 1)
        return np.where(self.shared[questions], common, np.where(right, RIGHT, wrong))

    def answers(self, questions: Ints, solutions: Ints) -> Ints:
        """Return the solutions: they are their answers."""
        return solutions

    def correct(self, questions: Ints, solutions: Ints) -> Flags:
        """Return where the answer is `RIGHT`."""
        right: Flags = solutions == RIGHT
        return right

    def refine(self, questions: Ints, solutions: Ints, key: int) -> Ints:
        """Return revisions: `fixes` and `breaks`."""
        draw = np.random.default_rng(key)
        changes = draw.random(len(questions)) < self._by_answer(
            questions, solutions, "breaks", "fixes"
        )
        wrong = draw.integers(1, self.wrong_answers + 1, size=len(questions))
        return np.where(changes, np.where(solutions == RIGHT, wrong, RIGHT), solutions)

    def flags(self, questions: Ints, solutions: Ints, key: int) -> tuple[Flags, Flags]:
        """Return what a critic flags: `finds` and `alarms`; it says nothing else."""
        uniform = np.random.default_rng(key).random(len(questions))
        flagged = uniform < self._by_answer(questions, solutions, "alarms", "finds")
        return flagged, flagged

    def revise(self, questions: Ints, solutions: Ints, notes: Any, key: int) -> Ints:
        """Return revisions, as `refine` does."""
        return self.refine(questions, solutions, key)

    def argue(self, questions: Ints, own: Ints, other: Ints, key: int) -> Ints:
        """Return the right one of two answers with probability `persuades`; own if none is."""
        persuaded = np.random.default_rng(key).random(len(questions)) < self._of(
            questions, "persuades"
        )
        one_right = (own == RIGHT) != (other == RIGHT)
        wrong = np.where(own == RIGHT, other, own)
        return np.where(one_right, np.where(persuaded, RIGHT, wrong), own)

    def choose(self, questions: Ints, candidates: Sequence[Ints], key: int) -> Ints:
        """Return the first right candidate with probability `judges`, else one at random."""
        draw = np.random.default_rng(key)
        right = np.stack(candidates) == RIGHT
        judged = right.any(0) & (draw.random(len(questions)) < self._of(questions, "judges"))
        random = draw.integers(len(candidates), size=len(questions))
        return np.where(judged, right.argmax(0), random)

    def _of(self, questions: Ints, effect: str) -> np.ndarray:
        """Return a probability of each question, by its type."""
        values = np.array([getattr(effects, effect) for effects in self.types.values()])
        of_each: np.ndarray = values[self.type[questions]]
        return of_each

    def _by_answer(
        self, questions: Ints, solutions: Ints, of_right: str, of_wrong: str
    ) -> np.ndarray:
        right, wrong = self._of(questions, of_right), self._of(questions, of_wrong)
        return np.where(solutions == RIGHT, right, wrong)


def _effects(name: str, stated: Mapping[str, Any]) -> Effects:
    """Return the effects of one type, checked."""
    unknown = set(stated) - set(Effects._fields)
    if unknown or "accuracy" not in stated:
        raise ValueError(
            f"types.{name} needs accuracy and takes {', '.join(Effects._fields)}; got "
            f"{', '.join(map(str, stated))}."
        )
    accuracy = stated["accuracy"]
    if not isinstance(accuracy, Mapping):
        accuracy = {"solver": accuracy}
    effects = Effects(**{**stated, "accuracy": dict(accuracy)})
    each = {**{f"accuracy.{w}": p for w, p in effects.accuracy.items()}, **effects._asdict()}
    del each["accuracy"]
    for effect, value in each.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(
                f"types.{name}.{effect} must be a probability, in [0, 1]; got {value!r}."
            )
    return effects


def _worker_names(types: Mapping[str, Effects]) -> tuple[str, ...]:
    names = {tuple(effects.accuracy) for effects in types.values()}
    if len(names) != 1 or not next(iter(names)):
        each = "; ".join(f"{t}: {', '.join(e.accuracy)}" for t, e in types.items())
        raise ValueError(
            "SimulatedWorkers needs types, at least one, whose accuracies are of the same workers; "
            f"got {each or 'none'}."
        )
    return next(iter(names))
