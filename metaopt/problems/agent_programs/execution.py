"""Runs a program on questions, and counts the calls of a model that each of them takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metaopt.engine.random import fold
from metaopt.problems.agent_programs.programs import JUDGE, Program
from metaopt.problems.agent_programs.workers import NO_ANSWER, Flags, Ints, Workers


class Execution(NamedTuple):
    """What a program did on N questions.

    Args:
        solutions: the solution that it ended with, (N,).
        right: whether that is right, (N,).
        calls: calls of a model that each question took, (N,).
    """

    solutions: Ints
    right: Flags
    calls: Ints


def execute(program: Program, workers: Workers, questions: Ints, key: int) -> Execution:
    """Run a program on questions.

    Every `solve` is a fresh call, and so is every round of `refine`, and of a `critique`, where a
    solution that the critic flags takes a second one. In a `debate` the sides are asked, one call
    each, as long as their answers differ, and the first one's stands where they never agree.
    `select` by the judge takes a call where the candidates differ. Of recorded workers a call is a
    worker that the question has not been given to.

    Args:
        program: within the grammar of the workers.
        workers: who answers.
        questions: their indices, (N,).
        key: of all draws.
    """
    run = _Run(workers, questions)
    solutions = run(program, np.arange(len(questions)), key)
    return Execution(solutions, workers.correct(questions, solutions), run.calls)


def plurality(answers: Sequence[Ints]) -> Ints:
    """Return, for each question, the index of the first voter with the most frequent answer.

    Of answers that are equally frequent, the one that was given first wins. A voter without an
    answer counts for nothing; where no one has an answer, the first voter is returned.

    Args:
        answers: of each voter, (N,), `NO_ANSWER` where it has none.

    Example:
        >>> votes = [np.array([1, 2]), np.array([2, 1]), np.array([2, -1])]
        >>> plurality(votes)
        array([1, 0])
    """
    table = np.stack(answers)  # (voters, N)
    counts = (table[:, None] == table[None]).sum(1)
    counts[table == NO_ANSWER] = 0
    first: Ints = counts.argmax(0)  # the first of the largest
    return first


class _Run:
    """An execution under way: `places` are positions among the questions, not their indices."""

    def __init__(self, workers: Workers, questions: Ints) -> None:
        self.workers, self.questions = workers, questions
        self.calls = np.zeros(len(questions), dtype=np.int64)
        self.asked: dict[str, Flags] = {}

    def __call__(self, program: Program, places: Ints, key: int) -> Ints:
        """Return the solutions at some places."""
        if not len(places):
            return np.zeros(0, dtype=np.int64)
        method = getattr(self, f"_{program.block}")
        solutions: Ints = method(program, places, key)
        return solutions

    def _solve(self, program: Program, places: Ints, key: int) -> Ints:
        if self.workers.fresh:
            self.calls[places] += 1
        else:
            asked = self.asked.setdefault(program.name, np.zeros(len(self.questions), dtype=bool))
            self.calls[places] += ~asked[places]
            asked[places] = True
        return self.workers.solve(program.name, self.questions[places], key)

    def _candidates(self, program: Program, places: Ints, key: int) -> list[Ints]:
        return [
            self(part, places, fold(key, index, again))
            for again in range(program.count)
            for index, part in enumerate(program.parts)
        ]

    def _answers(self, candidates: Sequence[Ints], places: Ints) -> list[Ints]:
        return [self.workers.answers(self.questions[places], c) for c in candidates]

    def _vote(self, program: Program, places: Ints, key: int) -> Ints:
        candidates = self._candidates(program, places, key)
        return _pick(candidates, plurality(self._answers(candidates, places)))

    def _select(self, program: Program, places: Ints, key: int) -> Ints:
        candidates = self._candidates(program, places, key)
        if program.name != JUDGE:
            scores = [
                self.workers.score(program.name, self.questions[places], c) for c in candidates
            ]
            return _pick(candidates, np.stack(scores).argmax(0))
        table = np.stack(self._answers(candidates, places))
        differ = np.flatnonzero((table != table[0]).any(0))
        choice = np.zeros(len(places), dtype=np.int64)
        if len(differ):
            self.calls[places[differ]] += 1
            choice[differ] = self.workers.choose(
                self.questions[places[differ]], [c[differ] for c in candidates], fold(key, JUDGE)
            )
        return _pick(candidates, choice)

    def _refine(self, program: Program, places: Ints, key: int) -> Ints:
        solutions = self(program.parts[0], places, fold(key, 0))
        for round_ in range(program.count):
            self.calls[places] += 1
            solutions = self.workers.refine(
                self.questions[places], solutions, fold(key, "round", round_)
            )
        return solutions

    def _critique(self, program: Program, places: Ints, key: int) -> Ints:
        solutions: Ints = self(program.parts[0], places, fold(key, 0)).copy()
        for round_ in range(program.count):
            self.calls[places] += 1
            flagged, notes = self.workers.flags(
                self.questions[places], solutions, fold(key, "critic", round_)
            )
            wrong = np.flatnonzero(flagged)
            if len(wrong):
                self.calls[places[wrong]] += 1
                solutions[wrong] = self.workers.revise(
                    self.questions[places[wrong]], solutions[wrong], notes[wrong],
                    fold(key, "revision", round_),
                )  # fmt: skip
        return solutions

    def _debate(self, program: Program, places: Ints, key: int) -> Ints:
        first, second = (self(p, places, fold(key, i)) for i, p in enumerate(program.parts))
        first, second = first.copy(), second.copy()  # a selection may hand on what it was given
        for round_ in range(program.count):
            one, other = self._answers([first, second], places)
            differ = np.flatnonzero(one != other)
            if not len(differ):
                break
            self.calls[places[differ]] += 2
            asked, sides = self.questions[places[differ]], (first[differ], second[differ])
            for side, solutions in enumerate((first, second)):
                solutions[differ] = self.workers.argue(
                    asked, sides[side], sides[1 - side], fold(key, "round", round_, side)
                )
        held: Ints = first
        return held

    def _route(self, program: Program, places: Ints, key: int) -> Ints:
        values = self.workers.features[program.name][self.questions[places]]
        above, solutions = values > program.count, np.zeros(len(places), dtype=np.int64)
        for index, taken in enumerate((above, ~above)):
            solutions[taken] = self(program.parts[index], places[taken], fold(key, index))
        return solutions


def _pick(candidates: Sequence[Ints], choice: Ints) -> Ints:
    """Return the candidate that was chosen for each question."""
    picked: Ints = np.stack(candidates)[choice, np.arange(len(choice))]
    return picked
