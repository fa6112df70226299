"""Expected accuracy and calls of a program on simulated workers, by enumeration."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, reduce
from itertools import pairwise, product
from math import exp, factorial, lgamma, log
from typing import NamedTuple

import numpy as np

from metaopt.problems.agent_programs.programs import Program
from metaopt.problems.agent_programs.simulated_workers import RIGHT, Effects, SimulatedWorkers

Array = np.ndarray

MOST = 10**6
"""Most tuples of answers that are enumerated at once."""


class Expected(NamedTuple):
    """Of one question drawn from the world: probability of a right answer, and mean calls."""

    accuracy: float
    calls: float


def expected(program: Program, workers: SimulatedWorkers, label: str | None = None) -> Expected:
    """Return the expectation over questions and draws, exactly, without running the program.

    Given the type, the label and whether a question's errors are shared (and for whom the shared
    answer is right), all calls are independent, so the distribution of a block's answer follows
    from those of its parts.

    Args:
        program: within the grammar of the workers.
        workers: whose effects are known.
        label: of the questions that count; `None` for all.

    Raises:
        ValueError: more than a million combinations of answers under one block.
    """
    total, mass, names = np.zeros(2), 0.0, list(workers.types)
    for index, name in enumerate(names):
        for other, weight in _labels(index, len(names), workers.label_error):
            if label in (None, names[other]):
                part = _resolved(program, names[other])
                total += weight * _over_states(part, workers.types[name], workers)
                mass += weight
    return Expected(*(total / mass).tolist())


def _over_states(program: Program, effects: Effects, workers: SimulatedWorkers) -> Array:
    total = np.zeros(2)
    for weight, shared in _states(effects, workers.correlation):
        answers, calls = _World(effects, workers.wrong_answers, shared)(program)
        total += weight * np.array([answers[RIGHT], calls])
    return total


def _labels(index: int, count: int, error: float) -> Iterator[tuple[int, float]]:
    """Yield the labels of a type with their probabilities."""
    for label in range(count):
        weight = 1 - error if label == index else error / max(count - 1, 1)
        if count == 1:
            weight = 1.0
        if weight:
            yield label, weight


def _resolved(program: Program, label: str) -> Program:
    """Return the program without its routes, as a question with this label meets it."""
    if program.block == "route":
        above = int(program.name == label) > program.count
        return _resolved(program.parts[0 if above else 1], label)
    parts = tuple(_resolved(part, label) for part in program.parts)
    return Program(program.block, parts, program.count, program.name)


def _states(effects: Effects, c: float) -> Iterator[tuple[float, dict[str, bool] | None]]:
    """Yield probabilities and, where errors are shared, whose shared answer is right."""
    if c < 1:
        yield 1 - c, None
    edges = sorted({0.0, 1.0, *effects.accuracy.values()})
    for low, high in pairwise(edges):
        if c:
            yield c * (high - low), {w: low < p for w, p in effects.accuracy.items()}


class _World:
    """Distributions of answers given a question's type and whether its errors are shared."""

    def __init__(self, effects: Effects, wrong: int, shared: dict[str, bool] | None) -> None:
        self.effects, self.wrong, self.shared = effects, wrong, shared
        self._known: dict[Program, tuple[Array, float]] = {}

    def __call__(self, program: Program) -> tuple[Array, float]:
        """Return the probabilities of the answers (1 + wrong,) and the expected calls."""
        if program not in self._known:
            self._known[program] = getattr(self, f"_{program.block}")(program)
        return self._known[program]

    def _solve(self, program: Program) -> tuple[Array, float]:
        name = program.name or next(iter(self.effects.accuracy))
        if self.shared is not None:
            answer = RIGHT if self.shared[name] else 1
            return np.eye(1 + self.wrong)[answer], 1.0
        p = self.effects.accuracy[name]
        return np.array([p, *[(1 - p) / self.wrong] * self.wrong]), 1.0

    def _vote(self, program: Program) -> tuple[Array, float]:
        parts = [self(part) for part in program.parts]
        calls = program.count * sum(calls for _, calls in parts)
        if len(parts) == 1:
            return _vote_of_equals(parts[0][0], program.count), calls
        answers = np.zeros(1 + self.wrong)
        for given, weight in _tuples([p for p, _ in parts]):
            # max is the first of those with the most votes, as in a tie
            answers[max(given, key=given.count)] += weight
        return answers, calls

    def _select(self, program: Program) -> tuple[Array, float]:
        parts = [self(part) for part in program.parts] * program.count
        calls = sum(calls for _, calls in parts)
        answers = np.zeros(1 + self.wrong)
        equal = len(program.parts) == 1
        each = _unordered(parts[0][0], len(parts)) if equal else _tuples([p for p, _ in parts])
        for given, weight in each:
            if len(set(given)) == 1:
                answers[given[0]] += weight
                continue
            calls += weight
            judges = self.effects.judges if RIGHT in given else 0.0
            answers[RIGHT] += weight * judges
            for answer in given:
                answers[answer] += weight * (1 - judges) / len(given)
        return answers, calls

    def _refine(self, program: Program) -> tuple[Array, float]:
        answers, calls = self(program.parts[0])
        for _ in range(program.count):
            answers = self._revised(answers, 1.0, 1.0)
        return answers, calls + program.count

    def _critique(self, program: Program) -> tuple[Array, float]:
        answers, calls = self(program.parts[0])
        finds, alarms = self.effects.finds, self.effects.alarms
        for _ in range(program.count):
            calls += 1 + alarms * answers[RIGHT] + finds * (1 - answers[RIGHT])
            answers = self._revised(answers, alarms, finds)
        return answers, calls

    def _revised(self, answers: Array, of_right: float, of_wrong: float) -> Array:
        """Return the answers after a revision of these shares of the right and the wrong ones."""
        broken = answers[RIGHT] * of_right * self.effects.breaks
        fixed = answers[1:] * of_wrong * self.effects.fixes
        new: Array = answers.copy()
        new[1:] += broken / self.wrong - fixed
        new[RIGHT] += fixed.sum() - broken
        return new

    def _debate(self, program: Program) -> tuple[Array, float]:
        (first, calls), (second, more) = (self(part) for part in program.parts)
        pairs, calls = np.outer(first, second), calls + more
        w = self.effects.persuades
        for _ in range(program.count):
            calls += 2 * (pairs.sum() - np.trace(pairs))
            new = pairs.copy()
            for wrong in range(1, 1 + self.wrong):
                for pair in ((RIGHT, wrong), (wrong, RIGHT)):
                    weight = pairs[pair]
                    new[pair] -= weight
                    new[RIGHT, RIGHT] += weight * w * w
                    new[wrong, wrong] += weight * (1 - w) ** 2
                    new[RIGHT, wrong] += weight * w * (1 - w)
                    new[wrong, RIGHT] += weight * (1 - w) * w
            pairs = new
        return pairs.sum(1), calls


def _tuples(parts: list[Array]) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield the answers of independent parts that can occur, with their probabilities."""
    support = [np.flatnonzero(p).tolist() for p in parts]
    if (count := reduce(lambda n, s: n * len(s), support, 1)) > MOST:
        raise ValueError(f"{count:,} combinations of answers under one block; at most {MOST:,}.")
    for given in product(*support):
        yield given, float(np.prod([p[a] for p, a in zip(parts, given, strict=True)]))


def _vote_of_equals(answers: Array, votes: int) -> Array:
    """Return the distribution of the plurality of independent votes from one distribution.

    Of tied answers each is the first with the same probability, since the votes' order is random.
    Counts of a multinomial are independent Poisson variables of mean votes * p given their sum. For
    a winner with k votes, the others' counts are summed up one by one: below k, or tied at k.
    """
    means = [votes * float(p) for p in answers]
    poisson = np.array([[_poisson(n, mean) for n in range(votes + 1)] for mean in means])
    total = np.zeros(len(answers))
    for winner, k in product(range(len(answers)), range(1, votes + 1)):
        if not poisson[winner, k]:
            continue
        sums = np.zeros((len(answers), votes - k + 1))  # by ties and by votes of the others
        sums[0, 0] = 1.0
        for other in range(len(answers)):
            if other != winner:
                sums = _with_other(sums, poisson[other], k)
        shares = sums[:, votes - k] / np.arange(1, len(answers) + 1)
        total[winner] += poisson[winner, k] * shares.sum()
    return total / _poisson(votes, float(votes))


def _with_other(sums: Array, counts: Array, k: int) -> Array:
    """Return the sums with one more answer, which has fewer than k votes, or k and is tied."""
    width = sums.shape[1]
    new = np.array([np.convolve(row, counts[:k])[:width] for row in sums])
    if k < width:
        new[1:, k:] += sums[:-1, : width - k] * counts[k]
    return new


def _poisson(n: int, mean: float) -> float:
    return exp(n * log(mean) - mean - lgamma(n + 1)) if mean else float(n == 0)


def _multinomial(answers: Array, draws: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield how often each answer is drawn, with its probability."""
    probabilities = answers.tolist()
    for counts in _counts(len(probabilities), draws):
        weight = float(factorial(draws))
        for p, n in zip(probabilities, counts, strict=True):
            weight *= p**n / factorial(n)
        if weight:
            yield counts, weight


def _unordered(answers: Array, draws: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield the answers of independent draws from one distribution, whatever their order."""
    for counts, weight in _multinomial(answers, draws):
        yield tuple(a for a, n in enumerate(counts) for _ in range(n)), weight


@cache
def _counts(answers: int, votes: int) -> tuple[tuple[int, ...], ...]:
    """Return all ways to give votes to answers."""
    if answers == 1:
        return ((votes,),)
    return tuple((n, *rest) for n in range(votes + 1) for rest in _counts(answers - 1, votes - n))
