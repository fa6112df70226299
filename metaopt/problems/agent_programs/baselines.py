"""Programs that nobody has to search: the control, and one block at all calls."""

from __future__ import annotations

from itertools import combinations

from metaopt.problems.agent_programs.execution import execute
from metaopt.problems.agent_programs.grammar import Grammar
from metaopt.problems.agent_programs.programs import JUDGE, Program
from metaopt.problems.agent_programs.workers import Ints, Workers


def control_program(workers: Workers, grammar: Grammar, training: Ints) -> Program:
    """Return the program that a search must beat: self-consistency with all calls of a question.

    It is `vote(solve, calls)` with the first worker, or `solve` where there is one call; of workers
    that cannot be asked again, the one that is right most often on the training questions.
    """
    solves = _solves(grammar)
    if workers.fresh:
        first = solves[0]
        return first if grammar.calls == 1 else Program("vote", (first,), grammar.calls)
    return _by_accuracy(workers, grammar, training)[0]


def vote_of_all(workers: Workers, grammar: Grammar, training: Ints) -> Program:
    """Return a vote of all workers, a call each; the better one in training wins ties.

    Of a single worker it is its `solve`.
    """
    solves = _by_accuracy(workers, grammar, training)
    return solves[0] if len(solves) == 1 else Program("vote", tuple(solves))


def fixed_blocks(grammar: Grammar) -> list[str]:
    """Return the texts of the programs of one block at as many calls as the grammar allows.

    Of workers that can be asked again: solve, vote, refine, critique, debate and select for each.
    Of others: each of them, and votes and selections over each set of them that fits.
    """
    solves, calls = _solves(grammar), grammar.calls
    made = list(solves)
    if grammar.fresh:
        for solve in solves:
            rounds = {"refine": calls - 1, "critique": (calls - 1) // 2, "debate": calls // 2 - 1}
            for block, n in rounds.items():
                parts = (solve, solve) if block == "debate" else (solve,)
                made += [Program(block, parts, n)] if n >= 1 else []
            made += [Program("vote", (solve,), calls)] if calls >= 2 else []
            if JUDGE in grammar.criteria and calls >= 3:
                made.append(Program("select", (solve,), calls - 1, JUDGE))
    else:
        for count in range(2, min(calls, len(solves)) + 1):
            for some in combinations(solves, count):
                made += [Program("vote", some)] if count > 2 else []
                made += [Program("select", some, 1, c) for c in grammar.criteria]
    return [str(program) for program in made]


def _by_accuracy(workers: Workers, grammar: Grammar, training: Ints) -> list[Program]:
    """Return each worker's `solve`, the one that is right most often first."""
    solves = _solves(grammar)
    if len(solves) == 1:  # which asks nobody
        return solves
    return sorted(solves, key=lambda p: -execute(p, workers, training, 0).right.sum())


def _solves(grammar: Grammar) -> list[Program]:
    several = len(grammar.workers) > 1
    return [Program("solve", name=worker if several else "") for worker in grammar.workers]
