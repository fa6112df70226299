"""The oracle program: the best block for each label, by its expectation, from an enumeration."""

from __future__ import annotations

from collections.abc import Iterator

from metaopt.problems.agent_programs.expected import expected
from metaopt.problems.agent_programs.grammar import Grammar
from metaopt.problems.agent_programs.programs import JUDGE, Program
from metaopt.problems.agent_programs.simulated_workers import SimulatedWorkers

LEVELS = 2
"""Blocks around a `solve` that are enumerated."""


def oracle(workers: SimulatedWorkers, grammar: Grammar, price: float = 0.0) -> Program:
    """Return the program that routes each label to the block of the lowest expected value.

    The value is 1 - accuracy + price * calls, exact; of equal ones the shortest program is taken.
    Blocks are those of `enumerated`: an upper bound for programs of these alone.

    Args:
        workers: whose effects are known.
        grammar: its limits hold for each block; routes are added whatever the depth.
        price: of a call.
    """
    candidates = sorted(set(enumerated(grammar)), key=lambda p: (len(str(p)), str(p)))

    def best(label: str) -> Program:
        def value(program: Program) -> float:
            accuracy, calls = expected(program, workers, label)
            return round(1 - accuracy + price * calls, 12)

        return min(candidates, key=value)

    *labels, last = workers.features
    program = best(last)
    for label in reversed(labels):
        chosen = best(label)
        if chosen != program:
            program = Program("route", (chosen, program), 0, label)
    return program


def enumerated(grammar: Grammar) -> Iterator[Program]:
    """Yield programs without routes: each worker, and two levels of blocks around it.

    A block repeats one program, as in vote(P, n), and a debate is between any two of the level
    below. Programs that take more calls than the grammar allows are left out.
    """
    several = len(grammar.workers) > 1
    level = [Program("solve", name=worker if several else "") for worker in grammar.workers]
    yield from level
    for _ in range(LEVELS):
        level = [
            program
            for part in level
            for program in _around(part, level, grammar)
            if program.calls <= grammar.calls
        ]
        yield from level


def _around(part: Program, level: list[Program], grammar: Grammar) -> Iterator[Program]:
    """Yield the blocks around a program that may be within the calls."""
    numbers = range(1, grammar.calls + 1)
    for n in numbers:
        yield Program("refine", (part,), n)
        yield Program("critique", (part,), n)
        if n > 1:
            yield Program("vote", (part,), n)
            if JUDGE in grammar.criteria:
                yield Program("select", (part,), n, JUDGE)
    for other in level:
        for n in range(1, (grammar.calls - part.calls - other.calls) // 2 + 1):
            yield Program("debate", (part, other), n)
