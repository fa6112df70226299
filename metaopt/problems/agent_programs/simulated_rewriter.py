"""A simulated rewriter: changes a program where it fails most, or anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaopt.engine.ranges import check_ranges
from metaopt.llm.chat import Message
from metaopt.problems.agent_programs.drawing import ATTEMPTS, mutated, random_program
from metaopt.problems.agent_programs.grammar import Grammar
from metaopt.problems.agent_programs.parsing import parse
from metaopt.problems.agent_programs.programs import Path, Program
from metaopt.problems.agent_programs.rewriting import shown_errors, shown_program


class SimulatedRewriter:
    """Answers `rewriting.asking`, each time as a function of the message.

    With probability `skill` it uses the errors that the message shows: it draws a kind of question
    in proportion to the errors there and gives that kind a random program of its own, by a new
    route or, where the program routes by this kind already, by a change of that part. Otherwise,
    and where no errors are shown, it changes any block. It knows nothing of what a block is good
    for, so what it gains over `skill=0` has come through the errors.

    Args:
        grammar: what is legal.
        skill: probability of using the errors, in [0, 1].
    """

    def __init__(self, grammar: Grammar, skill: float = 0.7) -> None:
        self.grammar, self.skill = grammar, skill
        check_ranges(self, "0 <= skill <= 1")

    def __call__(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Return the answer to the question that a conversation begins with."""
        draw, text = np.random.default_rng(key), messages[0]["content"]
        program, errors = parse(shown_program(text), self.grammar), shown_errors(text)
        wrong = np.array([row[3] for row in errors], dtype=float)
        if draw.random() < self.skill and wrong.sum() > 0:
            feature, threshold, *_ = errors[int(draw.choice(len(errors), p=wrong / wrong.sum()))]
            new = self._routed(program, feature, threshold, draw)
        else:
            new = mutated(program, self.grammar, draw)
        return f"```\n{new}\n```"

    def _routed(
        self, program: Program, feature: str, threshold: int, draw: np.random.Generator
    ) -> Program:
        """Return the program with another part for questions above a threshold."""
        path = _route_to(program, feature, threshold)
        if path is not None:
            return mutated(program, self.grammar, draw, (*path, 0))
        for _ in range(ATTEMPTS):
            own = random_program(self.grammar, draw)
            new = Program("route", (own, program), threshold, feature)
            if own != program and self.grammar.fits(new):
                return new
        return mutated(program, self.grammar, draw)


def _route_to(program: Program, feature: str, threshold: int) -> Path | None:
    """Return where, down the routes' second parts, one looks at this kind; `None` where none does.

    Below the first part of a route a question of another kind may not arrive.
    """
    path: Path = ()
    while program.block == "route":
        if (program.name, program.count) == (feature, threshold):
            return path
        path, program = (*path, 1), program.parts[1]
    return None
