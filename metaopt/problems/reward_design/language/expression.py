"""A reward: a sum of named, weighted terms, evaluated on batches of transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import final

import torch
from torch import Tensor

from metaopt.problems.reward_design.language.nodes import (
    Node,
    Number,
    Operation,
    bracketed,
    evaluate,
    number_text,
    variables_of,
)
from metaopt.problems.reward_design.language.operators import NEGATION, PRODUCT

LIMIT = 10.0
"""A reward is clipped to [-LIMIT, LIMIT]."""

ONE = Number(1.0)


@final
@dataclass(frozen=True)
class Term:
    """One line of a reward.

    Args:
        name: what its values are reported under.
        weight: a finite factor.
        body: what is weighted; the number 1 in a constant term.
    """

    name: str
    weight: float
    body: Node

    @property
    def text(self) -> str:
        """Its line."""
        weight = number_text(self.weight)
        body = "" if self.body == ONE else f" * {bracketed(self.body, PRODUCT)}"
        return f"{self.name} := {weight}{body}"


def weighted(name: str, weight: float, body: Node) -> Term:
    """Return a term whose weight has the signs and numbers that `body` starts with."""
    factors = [body]
    while True:
        first = factors[0]
        if isinstance(first, Number):
            weight *= first.value
            factors = factors[1:]
            if not factors:
                return Term(name, float(weight), ONE)
        elif isinstance(first, Operation) and first.operator == "*":
            factors[:1] = first.arguments
        elif isinstance(first, Operation) and first.operator == NEGATION:
            weight = -weight
            factors[:1] = first.arguments
        else:
            product = reduce(lambda a, b: Operation("*", (a, b)), factors)
            return Term(name, float(weight), product)


@final
@dataclass(frozen=True)
class Expression:
    """A reward r(s, a, s') = clip(sum_i w_i f_i(s, a, s'), -10, 10).

    Args:
        terms: at least one, with different names.
    """

    terms: tuple[Term, ...]

    @cached_property
    def text(self) -> str:
        """Lines `name := weight * body`, which parse to the same tree."""
        return "\n".join(term.text for term in self.terms)

    @cached_property
    def names(self) -> frozenset[str]:
        """Variables that it reads."""
        return frozenset(name for term in self.terms for name in variables_of(term.body))

    @property
    def size(self) -> int:
        """Nodes of all terms, with a node for each weight."""
        return sum(1 + term.body.size for term in self.terms)

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the reward of each transition, clipped, in the dtype and shape of the variables.

        Args:
            values: a tensor (R, E), or of any one shape, of each variable in `names`, and at least
                one, which gives the shape.
        """
        total = reduce(torch.add, self.term_values(values).values())
        return total.clamp(-LIMIT, LIMIT).to(_example(values).dtype)

    def term_values(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weight times body of each term by its name, not clipped, in double precision."""
        # In single precision a square of squares overflows at values that the parser has admitted.
        like = _example(values).double()
        return {
            term.name: (term.weight * evaluate(term.body, values, like)).expand_as(like)
            for term in self.terms
        }


def _example(values: Mapping[str, Tensor]) -> Tensor:
    """Return a floating-point variable, which has the shape and the dtype of a reward."""
    for tensor in values.values():
        if torch.is_floating_point(tensor):
            return tensor
    raise ValueError("A reward needs the values of at least one floating-point variable; got none.")
