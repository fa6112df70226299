"""Reads a reward: lines of weighted terms, in limits, finite on random transitions."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Sequence, Sized
from dataclasses import replace
from keyword import iskeyword

import torch

from metaopt.engine.random import generator
from metaopt.problems.reward_design.language.errors import InvalidReward
from metaopt.problems.reward_design.language.expression import Expression, Term, weighted
from metaopt.problems.reward_design.language.nodes import Node
from metaopt.problems.reward_design.language.syntax import (
    MAX_DEPTH,
    MAX_NAME,
    MAX_NODES,
    MAX_NUMBER,
    Scope,
    check_text,
    convert,
    refusal,
    statements,
    summands,
)

MAX_FORMULA_DEPTH = 20
_LABEL = re.compile(r"\s*([A-Za-z]\w*)\s*:=\s*")


def parse(text: str, names: Collection[str]) -> Expression:
    """Return the reward that a text states. Nothing in it is run.

    A line without `name :=` is a sum whose summands are terms, named `term1`, `term2` and so on.
    What follows a # is a comment.

    Args:
        text: lines `name := weight * body`.
        names: legal variables, such as `variables.of(environment).names`.

    Raises:
        InvalidReward: it says anything else, is deeper than 6 or has more than 60 nodes, or is not
            finite on 1,000 random transitions.
    """
    terms: list[Term] = []
    for row, line in enumerate(check_text(text).split("\n")):
        label = _LABEL.match(line)
        start = label.end() if label else len(line) - len(line.lstrip())
        if not line[start:] and not label:
            continue
        scope = Scope(names, row, start)
        body = _expression(line[start:], scope)
        if label:
            terms.append(term(label.group(1), 1, body, scope))
        else:
            for sign, summand in summands(body):
                terms.append(term(f"term{len(terms) + 1}", sign, summand, scope))
                check_count(terms)
        check_count(terms)
    return checked(terms)


def formula(text: str, names: Collection[str]) -> Node:
    """Return the tree of a formula over `names`, which may be deeper than a reward."""
    scope = Scope(names, max_depth=MAX_FORMULA_DEPTH)
    return convert(_expression(check_text(text), scope), scope)


def term(name: str, sign: int, node: ast.expr, scope: Scope) -> Term:
    """Return the term of an expression, whose leading numbers are the weight."""
    tree = convert(node, replace(scope, max_depth=MAX_FORMULA_DEPTH))
    made = weighted(name, sign, tree)
    if abs(made.weight) > MAX_NUMBER:  # of several factors; its text must be legal, too
        raise scope.error(
            f"a weight of {made.weight:.3g}; weights are within +-{MAX_NUMBER:.0e}.", node
        )
    if made.body.depth > MAX_DEPTH:
        raise scope.error(f"nested too deeply; a body is at most {MAX_DEPTH} deep.", node)
    return made


def check_count(terms: Sized) -> None:
    """Raise where terms are so many that their nodes are too many; at once, which bounds a text."""
    if len(terms) > MAX_NODES:
        raise InvalidReward(f"more than {MAX_NODES} terms; at most {MAX_NODES} nodes are legal.")


def checked(terms: Sequence[Term]) -> Expression:
    """Return the reward of the terms, if it is within the language's limits."""
    expression = Expression(tuple(terms))
    if expression.size > MAX_NODES:
        raise InvalidReward(f"{expression.size} nodes; at most {MAX_NODES} are legal.")
    labels: set[str] = set()
    for number, label in enumerate((term.name for term in terms), 1):
        if label in labels or len(label) > MAX_NAME or "__" in label or iskeyword(label):
            raise InvalidReward(
                f"the name `{label[:MAX_NAME]}` of term {number} is not legal; names of terms "
                f"differ, have at most {MAX_NAME} characters, no double underscore, and are no "
                "keywords of Python."
            )
        labels.add(label)
    _check_finite(expression)
    return expression


def _expression(text: str, scope: Scope) -> ast.expr:
    """Return the one expression of a line."""
    lines = statements(text, scope)
    if len(lines) != 1:
        raise InvalidReward("a line has one term; write each on a line.", scope.line + 1)
    if not isinstance(lines[0], ast.Expr):
        raise refusal(lines[0], scope)
    return lines[0].value


def _check_finite(expression: Expression) -> None:
    """Raise unless the terms are finite on 1,000 transitions of sizes 0.01 to 1,000."""
    draw = generator(0)
    values = {}
    for name in sorted(expression.names) or ["none"]:
        size = 10 ** torch.empty(1000, dtype=torch.float64).uniform_(-2, 3, generator=draw)
        values[name] = size * torch.randn(1000, dtype=torch.float64, generator=draw).sign()
    for name, numbers in expression.term_values(values).items():
        if not numbers.isfinite().all():
            raise InvalidReward(
                f"the term `{name}` is not finite on 1,000 random transitions; use smaller numbers "
                "or fewer squares and products."
            )
