"""Recorded workers: systems with one solution each to every question; none can be asked again."""

from __future__ import annotations

import numpy as np

from metaopt.data.final_answers import final_answer
from metaopt.data.solutions import Solutions
from metaopt.problems.agent_programs.features import features_of, thresholds_of
from metaopt.problems.agent_programs.grammar import NAME
from metaopt.problems.agent_programs.workers import NO_ANSWER, Flags, Ints, Workers

CRITERIA = {"longest": 1, "shortest": -1}
"""What `select` compares solutions by, their number of characters, and its sign."""


class RecordedWorkers(Workers):
    """The systems of a data set of solutions, such as the four of GSM8K's.

    A solution is the index of its system. Two solutions agree where their final answers are the
    same (`metaopt.data.final_answers`), and an answer is right where the record says so. `solve`,
    `vote` over different systems, `select` by length and `route` are legal; a fresh call is not.

    Args:
        data: each question with one solution of every system, and its outcome.

    Raises:
        ValueError: fewer than two systems, a name that a program cannot hold, or a question without
            exactly one decided solution of each system.

    Cost: none; a call is counted for each different system that a question is given to.
    """

    fresh = False
    criteria = tuple(CRITERIA)

    def __init__(self, data: Solutions) -> None:
        self.texts, self.size, self.source = data.queries, len(data.queries), data.source
        self.names = tuple(sorted({row.system for row in data.rows}))
        _check_names(self.names, data.source)
        places = {name: index for index, name in enumerate(self.names)}
        shape = (self.size, len(self.names))
        rows = np.zeros(shape, dtype=np.int64)
        self.outcomes, self.lengths = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
        self.codes = np.full(shape, NO_ANSWER, dtype=np.int64)
        seen: list[dict[str, int]] = [{} for _ in range(self.size)]
        for row in data.rows:
            at = row.query, places[row.system]
            rows[at] += 1
            self.outcomes[at], self.lengths[at] = row.outcome, len(row.response)
            if answer := final_answer(row.response):
                codes = seen[row.query]
                self.codes[at] = codes.setdefault(answer, len(codes))
        off = np.argwhere(rows != 1)
        if len(off):
            query, system = off[0]
            raise ValueError(
                f"RecordedWorkers needs one decided solution of each system to every question; of "
                f"{data.source}, question {query + 1} has {rows[query, system]} of "
                f"{self.names[system]}, and {len(np.unique(off[:, 0]))} questions are incomplete. "
                "Leave them out of the file."
            )
        features = features_of(self.texts)
        self.thresholds = {n: t for n, values in features.items() if (t := thresholds_of(values))}
        self.features = {name: features[name] for name in self.thresholds}

    def solve(self, worker: str, questions: Ints, key: int) -> Ints:
        """Return the index of the worker."""
        return np.full(len(questions), self.names.index(worker), dtype=np.int64)

    def answers(self, questions: Ints, solutions: Ints) -> Ints:
        """Return the answers, numbered within each question."""
        codes: Ints = self.codes[questions, solutions]
        return codes

    def correct(self, questions: Ints, solutions: Ints) -> Flags:
        """Return the recorded outcomes."""
        outcomes: Flags = self.outcomes[questions, solutions]
        return outcomes

    def score(self, criterion: str, questions: Ints, solutions: Ints) -> Ints:
        """Return the length of each solution, or minus it; less than any of one without answer."""
        lengths = CRITERIA[criterion] * self.lengths[questions, solutions]
        answered = self.codes[questions, solutions] != NO_ANSWER
        return np.where(answered, lengths, np.iinfo(np.int64).min)


def _check_names(names: tuple[str, ...], source: str) -> None:
    wrong = [name for name in names if not NAME.fullmatch(name)]
    if len(names) < 2 or wrong:
        raise ValueError(
            f"RecordedWorkers needs at least two systems whose names are of letters, digits and "
            f"_ . : / -; {source} has {', '.join(map(repr, names))}. Name them in the column "
            "`system`, or as GSM8K's file does."
        )
