"""What is legal in a program: the workers, features and blocks of a world, and limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metaopt.engine.ranges import check_ranges
from metaopt.problems.agent_programs.programs import BLOCKS, FORMS, JUDGE, Program

MAX_COUNT = 1000
"""Largest n of a block and largest threshold of a route."""

MAX_DEPTH = 100

NAME = re.compile(r"(?![0-9]+$)\w[\w.:/-]*")
"""Names of workers and features: what the parser reads as one word, and not as a number."""

FRESH = ("refine", "critique", "debate")
"""Blocks that ask a model again, which recorded workers cannot answer."""


class InvalidProgram(ValueError):
    """A text that is no program: the message says where, what is wrong and what is legal.

    Args:
        problem: a sentence.
        column: the place in the text, from 1; `None` where it is the whole text.
    """

    def __init__(self, problem: str, column: int | None = None) -> None:
        place = "" if column is None else f", column {column}"
        super().__init__(f"Program{place}: {problem}")


@dataclass(frozen=True)
class Grammar:
    """The programs that a world can run.

    Args:
        workers: names; with one, `solve` needs none.
        features: of questions, each with the thresholds that a route over it is drawn from.
        criteria: of `select`.
        fresh: whether a worker can be asked again; where it cannot, `FRESH`, the criterion
            `JUDGE` and vote(P, n) are refused, and a call is a different worker.
        calls: most calls of a question, from 1 to `MAX_COUNT`.
        depth: most blocks nested, from 1 to `MAX_DEPTH`.
        size: most blocks, >= 1.

    Raises:
        ValueError: no worker, a name that a program cannot hold, or a limit out of its range.
    """

    workers: tuple[str, ...]
    features: Mapping[str, Sequence[int]]
    criteria: tuple[str, ...] = (JUDGE,)
    fresh: bool = True
    calls: int = 5
    depth: int = 6
    size: int = 40

    def __post_init__(self) -> None:
        check_ranges(self, f"1 <= calls <= {MAX_COUNT}", f"1 <= depth <= {MAX_DEPTH}", "size >= 1")
        wrong = [name for name in (*self.workers, *self.features) if not NAME.fullmatch(name)]
        if wrong or not self.workers:
            raise ValueError(
                "Grammar needs at least one worker, and names of workers and features that are of "
                "letters, digits and _ . : / - and no number; got "
                f"{', '.join(map(repr, wrong)) or 'no worker'}."
            )

    @property
    def blocks(self) -> tuple[str, ...]:
        """The legal blocks."""
        illegal = {*(() if self.fresh else FRESH)}
        illegal |= {"select"} if not self.criteria else set()
        illegal |= {"route"} if not self.features else set()
        return tuple(block for block in BLOCKS if block not in illegal)

    @property
    def words(self) -> str:
        """The language in lines, for a model that writes programs and for messages."""
        names = ", ".join(self.workers)
        lines = [f"  {FORMS[block]}" for block in self.blocks]
        lines += [f"worker: {names}" + (" (may be left out)" if len(self.workers) == 1 else "")]
        if "select" in self.blocks:
            lines.append(f"criterion: {', '.join(self.criteria)}")
        if "route" in self.blocks:
            lines.append(f"feature: {', '.join(self.features)} (`feature` alone is feature > 0)")
        return "\n".join(lines)

    def calls_of(self, program: Program) -> int:
        """Return the most calls that a question takes: of recorded workers, the different ones."""
        return program.calls if self.fresh else max(map(len, program.worker_sets))

    def check(self, program: Program) -> None:
        """Raise where a program is beyond the limits.

        Raises:
            InvalidProgram: names the limit, what the program has, and the argument that sets it.
        """
        if (problem := self._excess(program)) is not None:
            raise InvalidProgram(problem)

    def fits(self, program: Program) -> bool:
        """Return whether a program is within the limits."""
        return self._excess(program) is None

    def _excess(self, program: Program) -> str | None:
        """Return what says of which limit a program is beyond, or `None`."""
        # Calls last: those of recorded workers take long to count in a program beyond `size`.
        for name, count, most, unit in (
            ("depth", lambda p: p.depth, self.depth, "blocks deep"),
            ("size", lambda p: p.size, self.size, "blocks"),
            ("calls", self.calls_of, self.calls, "calls of a question"),
        ):
            if (number := count(program)) > most:
                return (
                    f"{number} {unit}; at most {most} are legal ({name}={most}). Use fewer or "
                    "smaller blocks."
                )
        return None
