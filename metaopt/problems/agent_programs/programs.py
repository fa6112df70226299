"""Programs of agents: typed expressions over blocks, their text, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

Block = Literal["solve", "vote", "select", "refine", "critique", "debate", "route"]
BLOCKS: tuple[str, ...] = get_args(Block)

JUDGE = "judge"
"""The criterion of `select` that asks a model; every other one reads the solutions."""

FORMS = {
    "solve": "solve or solve(worker)",
    "vote": "vote(P, n) or vote(P, P, ...)",
    "select": "select(criterion, P, n) or select(criterion, P, P, ...)",
    "refine": "refine(P, n)",
    "critique": "critique(P, n)",
    "debate": "debate(P, P, n)",
    "route": "route(feature > n, P, P)",
}
"""How each block is written; P is a program and n a whole number."""


@dataclass(frozen=True)
class Program:
    """One block with its parts.

    Args:
        block: one of `BLOCKS`.
        parts: the programs whose answers it works on; of `route`, the one for questions above the
            threshold and the one for the others.
        count: how often `vote` and `select` run a single part; the rounds of `refine`, `critique`
            and `debate`; the threshold of `route`. 1 elsewhere.
        name: worker of `solve`, "" for the only one; criterion of `select`; feature of `route`.

    Example:
        >>> solve = Program("solve")
        >>> print(Program("route", (Program("vote", (solve,), 5), solve), 3, "numbers"))
        route(numbers > 3, vote(solve, 5), solve)
    """

    block: str
    parts: tuple[Program, ...] = ()
    count: int = 1
    name: str = ""

    @cached_property
    def depth(self) -> int:
        """Blocks on the longest way to a `solve`, both ends included."""
        return 1 + max((part.depth for part in self.parts), default=0)

    @cached_property
    def size(self) -> int:
        """Number of blocks."""
        return 1 + sum(part.size for part in self.parts)

    @cached_property
    def calls(self) -> int:
        """Most calls of a model that one question can take, where each `solve` is a call.

        solve 1; vote(P, n) n times P; refine(P, n) P and n; critique(P, n) P and 2 n; debate(P, Q,
        n) P, Q and 2 n; select by `JUDGE` one more than its candidates; route the larger of both.
        """
        each = [part.calls for part in self.parts]
        if self.block == "solve":
            return 1
        if self.block == "route":
            return max(each)
        if self.block in ("vote", "select"):
            return self.count * sum(each) + (self.name == JUDGE)
        return sum(each) + self.count * (1 if self.block == "refine" else 2)

    @cached_property
    def worker_sets(self) -> frozenset[frozenset[str]]:
        """The sets of workers that `solve` a question, one for each way through the routes."""
        if self.block == "solve":
            return frozenset([frozenset([self.name])])
        if self.block == "route":
            return self.parts[0].worker_sets | self.parts[1].worker_sets
        sets: frozenset[frozenset[str]] = frozenset([frozenset()])
        for part in self.parts:  # one by one: never more than the subsets of the workers
            sets = frozenset(a | b for a in sets for b in part.worker_sets)
        return sets

    def __str__(self) -> str:
        parts = [str(part) for part in self.parts]
        if self.block == "solve":
            return f"solve({self.name})" if self.name else "solve"
        if self.block == "route":
            feature = self.name if self.count == 0 else f"{self.name} > {self.count}"
            return f"route({', '.join([feature, *parts])})"
        if self.block == "select":
            parts.insert(0, self.name)
        if self.block not in ("vote", "select") or len(self.parts) == 1:
            parts.append(str(self.count))
        return f"{self.block}({', '.join(parts)})"


Path = tuple[int, ...]
"""Where a block stands in a program: the indices of the parts that lead to it."""


def paths(program: Program) -> Iterator[Path]:
    """Yield the place of every block, that of the whole program first."""
    yield ()
    for index, part in enumerate(program.parts):
        for path in paths(part):
            yield (index, *path)


def at(program: Program, path: Path) -> Program:
    """Return the block at a place."""
    return at(program.parts[path[0]], path[1:]) if path else program


def changed(program: Program, path: Path, change: Callable[[Program], Program]) -> Program:
    """Return the program with the block at a place replaced by what `change` makes of it."""
    if not path:
        return change(program)
    index = path[0]
    part = changed(program.parts[index], path[1:], change)
    parts = (*program.parts[:index], part, *program.parts[index + 1 :])
    return Program(program.block, parts, program.count, program.name)
