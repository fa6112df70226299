"""Trees of the reward language: how they print, what they read, and their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from metaopt.problems.reward_design.language.operators import (
    ATOM,
    INFIX,
    NEGATION,
    OPERATORS,
    PREFIX,
)


@dataclass(frozen=True)
class Number:
    """A finite constant."""

    value: float
    depth = size = 1

    @property
    def precedence(self) -> int:
        """How tightly its text binds."""
        return ATOM

    def __str__(self) -> str:
        return number_text(self.value)


@dataclass(frozen=True)
class Variable:
    """A quantity of the environment, by its name."""

    name: str
    depth = size = 1

    @property
    def precedence(self) -> int:
        """How tightly its text binds."""
        return ATOM

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Operation:
    """An operator or a function, and its arguments.

    Args:
        operator: its name in `OPERATORS`.
        arguments: trees.

    Attributes:
        depth: nodes on the longest way to a leaf, this one and the leaf included.
        size: nodes of the tree.
    """

    operator: str
    arguments: tuple[Node, ...]

    @cached_property
    def depth(self) -> int:
        """Nodes on the longest way to a leaf."""
        return 1 + max(node.depth for node in self.arguments)

    @cached_property
    def size(self) -> int:
        """Nodes of the tree."""
        return 1 + sum(node.size for node in self.arguments)

    @property
    def precedence(self) -> int:
        """How tightly its text binds."""
        return OPERATORS[self.operator].precedence or ATOM

    def __str__(self) -> str:
        if self.operator in INFIX:
            left, right = self.arguments
            # Sums and products group to the left: a right operand of the same level is in brackets.
            right_text = bracketed(right, self.precedence + 1)
            return f"{bracketed(left, self.precedence)} {self.operator} {right_text}"
        if self.operator == NEGATION:
            return f"-{bracketed(self.arguments[0], PREFIX)}"
        return f"{self.operator}({', '.join(map(str, self.arguments))})"


Node = Number | Variable | Operation


def bracketed(node: Node, precedence: int) -> str:
    """Return the text of a tree, in brackets where it binds less tightly than `precedence`."""
    return f"({node})" if node.precedence < precedence else str(node)


def number_text(value: float) -> str:
    """Return the shortest text that reads as the number: 500 and 0.1, not 500.0."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def variables_of(node: Node) -> Iterator[str]:
    """Yield the names of the variables in a tree, from left to right."""
    if isinstance(node, Variable):
        yield node.name
    elif isinstance(node, Operation):
        for argument in node.arguments:
            yield from variables_of(argument)


def rename(node: Node, names: Mapping[str, str]) -> Node:
    """Return the tree with other names for its variables."""
    if isinstance(node, Variable):
        return Variable(names[node.name])
    if isinstance(node, Operation):
        return Operation(
            node.operator, tuple(rename(argument, names) for argument in node.arguments)
        )
    return node


def evaluate(node: Node, values: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Return the values of a tree, of the shape of the variables or (), on the device of `like`."""
    if isinstance(node, Number):
        return like.new_full((), node.value)
    if isinstance(node, Variable):
        return values[node.name].to(like.dtype)
    arguments = [evaluate(argument, values, like) for argument in node.arguments]
    return OPERATORS[node.operator].function(*arguments)
