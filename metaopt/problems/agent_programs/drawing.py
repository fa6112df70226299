"""Random programs and random changes of one: what random search and the simulated rewriter draw."""

from __future__ import annotations

from functools import partial

import numpy as np

from metaopt.problems.agent_programs.grammar import Grammar
from metaopt.problems.agent_programs.programs import JUDGE, Path, Program, at, changed, paths

ATTEMPTS = 50
"""Draws after which a change that does not fit is given up."""

Draw = np.random.Generator


def random_program(grammar: Grammar, draw: Draw, calls: int | None = None) -> Program:
    """Return a program that fits, its blocks drawn from those that the calls left allow.

    Args:
        grammar: of the world.
        draw: of the choices.
        calls: most calls, `None` for the grammar's.
    """
    most = grammar.calls if calls is None else calls
    for _ in range(ATTEMPTS):
        program = _random(grammar, draw, most, grammar.depth)
        if grammar.fits(program) and grammar.calls_of(program) <= most:
            return program
    return _solve(grammar, draw)


def _solve(grammar: Grammar, draw: Draw) -> Program:
    several = len(grammar.workers) > 1
    return Program("solve", name=str(draw.choice(grammar.workers)) if several else "")


def _random(grammar: Grammar, draw: Draw, calls: int, depth: int) -> Program:
    """Return a program of at most so many calls, as far as fresh calls are concerned."""
    least = {"solve": 1, "refine": 2, "critique": 3, "debate": 4, "vote": 2, "route": 1}
    least["select"] = 3 if grammar.criteria == (JUDGE,) else 2
    if len(grammar.workers) == 1:
        least["route"] = 2  # both parts of a smaller one would be the same
    fitting = [b for b in grammar.blocks if least[b] <= calls and (depth > 1 or b == "solve")]
    block = str(draw.choice(fitting))
    if block == "solve":
        return _solve(grammar, draw)
    if block == "route":
        parts = tuple(_random(grammar, draw, calls, depth - 1) for _ in range(2))
        feature, threshold = _feature(grammar, draw)
        return parts[0] if parts[0] == parts[1] else Program("route", parts, threshold, feature)
    if block in ("vote", "select"):
        return _several(grammar, draw, block, calls, depth)
    if block == "debate":
        rounds = int(draw.integers(1, (calls - 2) // 2 + 1))
        first = int(draw.integers(1, calls - 2 * rounds))
        shares = (first, calls - 2 * rounds - first)
        parts = tuple(_random(grammar, draw, share, depth - 1) for share in shares)
        return Program("debate", parts, rounds)
    price = 1 if block == "refine" else 2
    rounds = int(draw.integers(1, (calls - 1) // price + 1))
    part = _random(grammar, draw, calls - price * rounds, depth - 1)
    return Program(block, (part,), rounds)


def _several(grammar: Grammar, draw: Draw, block: str, calls: int, depth: int) -> Program:
    """Return a vote or a selection, of one program several times or of several."""
    name = str(draw.choice(grammar.criteria)) if block == "select" else ""
    calls = max(calls - (name == JUDGE), 2)
    count = int(draw.integers(2, min(calls, 9) + 1))
    if grammar.fresh and draw.random() < 0.7:
        return Program(block, (_random(grammar, draw, calls // count, depth - 1),), count, name)
    each = max(calls // count, 1)
    parts = tuple(_random(grammar, draw, each, depth - 1) for _ in range(count))
    return Program(block, parts, 1, name)


def _feature(grammar: Grammar, draw: Draw) -> tuple[str, int]:
    feature = str(draw.choice(list(grammar.features)))
    return feature, int(draw.choice(grammar.features[feature]))


def mutated(program: Program, grammar: Grammar, draw: Draw, path: Path | None = None) -> Program:
    """Return another program that fits, changed in one block; the same one where none is found.

    The block is replaced by a random one or by one of its parts, wrapped, or changed in its number
    or its name.

    Args:
        program: what is changed.
        grammar: of the world.
        draw: of the choices.
        path: the block whose subtree is changed; `None` for any.
    """
    start = path or ()
    for _ in range(ATTEMPTS):
        places = [(*start, *p) for p in paths(at(program, start))]
        place = places[int(draw.integers(len(places)))]
        change = CHANGES[int(draw.integers(len(CHANGES)))]
        new = changed(program, place, partial(change, grammar=grammar, draw=draw))
        if new != program and grammar.fits(new):
            return new
    return program


def _replace(block: Program, grammar: Grammar, draw: Draw) -> Program:
    return _random(grammar, draw, grammar.calls, max(grammar.depth - 1, 1))


def _unwrap(block: Program, grammar: Grammar, draw: Draw) -> Program:
    return block.parts[int(draw.integers(len(block.parts)))] if block.parts else block


def _wrap(block: Program, grammar: Grammar, draw: Draw) -> Program:
    """Return a random program in which the block takes the place of one `solve`."""
    frame = _random(grammar, draw, grammar.calls, grammar.depth)
    leaves = [path for path in paths(frame) if at(frame, path).block == "solve"]
    return changed(frame, leaves[int(draw.integers(len(leaves)))], lambda _: block)


def _recount(block: Program, grammar: Grammar, draw: Draw) -> Program:
    """Return the block with its number one higher or lower; of a route, with another threshold."""
    if block.block == "route":
        thresholds = grammar.features[block.name]
        return Program("route", block.parts, int(draw.choice(thresholds)), block.name)
    if block.block == "solve" or (len(block.parts) > 1 and block.block != "debate"):
        return block
    least = 2 if block.block in ("vote", "select") else 1
    count = max(block.count + int(draw.choice([-1, 1])), least)
    return Program(block.block, block.parts, count, block.name)


def _rename(block: Program, grammar: Grammar, draw: Draw) -> Program:
    """Return the block with another worker, criterion or feature."""
    if block.block == "solve":
        return _solve(grammar, draw)
    if block.block == "select":
        return Program("select", block.parts, block.count, str(draw.choice(grammar.criteria)))
    if block.block == "route":
        feature, threshold = _feature(grammar, draw)
        return Program("route", block.parts, threshold, feature)
    return block


CHANGES = (_replace, _unwrap, _wrap, _recount, _rename)
