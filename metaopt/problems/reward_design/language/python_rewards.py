"""Reads a reward that is written as a Python function, if it says what the language can say."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from metaopt.problems.reward_design.language.errors import InvalidReward
from metaopt.problems.reward_design.language.expression import LIMIT, Expression, Term
from metaopt.problems.reward_design.language.nodes import Node, Number
from metaopt.problems.reward_design.language.operators import FUNCTIONS
from metaopt.problems.reward_design.language.parsing import (
    MAX_FORMULA_DEPTH,
    check_count,
    checked,
    term,
)
from metaopt.problems.reward_design.language.syntax import (
    MAX_NAME,
    MAX_NODES,
    Scope,
    check_text,
    convert,
    refusal,
    statements,
    summands,
)

_FORM = "write `def reward(<variables>):` with assignments and one return"


def parse_python(text: str, names: Collection[str]) -> Expression:
    """Return the reward that a Python function computes. The function is read, never run.

    Each summand of what is returned is a term. A summand that is a local name, or a number times
    one, is named after it; so is a local name with an underscore at the end, which Python needs
    where a term has a variable's name.

    Example:
        >>> print(parse_python('''
        ... def reward(energy, energy2, terminated):
        ...     gain = energy2 - energy
        ...     return 500 * gain + terminated
        ... ''', ["energy", "energy2", "terminated"]).text)
        gain := 500 * (energy2 - energy)
        term2 := 1 * terminated

    Args:
        text: one function `reward` whose arguments are variables, and in it assignments of
            expressions of the language to new names, a docstring, and a return at the end.
        names: legal variables.

    Raises:
        InvalidReward: it is or has anything else, or says a reward that `parse` would refuse.
    """
    scope = Scope(names)
    match statements(check_text(text), scope):
        case [ast.FunctionDef() as function]:
            pass
        case [*nodes]:
            for node in nodes:
                if not isinstance(node, ast.FunctionDef | ast.Expr):
                    raise refusal(node, scope)
            raise InvalidReward(f"the text is not one function; {_FORM}.")
    scope = replace(scope, names=_arguments(function, scope))
    definitions, returned = _body(function, scope)
    trees: dict[str, Node] = {}
    for name, value in definitions.items():
        trees[name] = convert(value, replace(scope, local=trees, max_depth=MAX_FORMULA_DEPTH))
        if trees[name].size > MAX_NODES:  # before names that stand for names multiply
            raise scope.error(f"{trees[name].size} nodes; at most {MAX_NODES} are legal.", value)
    scope = replace(scope, local=trees)
    terms: dict[str, Term] = {}
    for sign, summand in _parts(returned, definitions, scope):
        name = _local_name(summand, definitions) or ""
        name = name[:-1] if name[:-1] in names and name.endswith("_") else name
        number = len(terms) + 1
        while not name or name in terms:
            # A later summand may be called after any local name, so that none of these is free.
            name = "" if f"term{number}" in definitions else f"term{number}"
            number += 1
        terms[name] = term(name, sign, summand, scope)
        check_count(terms)  # at once, since local names multiply the summands
    return checked(list(terms.values()))


def _arguments(function: ast.FunctionDef, scope: Scope) -> list[str]:
    """Return the variables that a function names as its arguments."""
    form, listed = function.args, function.args.args
    others = (form.posonlyargs, form.kwonlyargs, form.vararg, form.kwarg, form.defaults)
    strange = (*others, function.decorator_list, function.returns)
    if function.name != "reward" or any(strange) or any(node.annotation for node in listed):
        raise scope.error(
            "a reward is a function `reward` with plain arguments, without decorators, defaults "
            f"and annotations; {_FORM}.",
            function,
        )
    for node in listed:
        if node.arg not in scope.names:
            raise scope.error(
                f"the argument `{node.arg[:MAX_NAME]}` is no variable; legal are "
                f"{', '.join(sorted(scope.names))}.",
                node,
            )
    names = [node.arg for node in listed]
    if len(set(names)) < len(names):
        raise scope.error("an argument is named twice; name each once.", function)
    return names


def _body(function: ast.FunctionDef, scope: Scope) -> tuple[dict[str, ast.expr], ast.expr]:
    """Return what local names are assigned, in order, and what the function returns."""
    definitions: dict[str, ast.expr] = {}
    first, *rest = function.body
    lines = rest if _is_docstring(first) else function.body
    for line in lines[:-1]:
        if not isinstance(line, ast.Assign):
            raise refusal(line, scope)
        target = line.targets[0]
        if len(line.targets) > 1 or not isinstance(target, ast.Name):
            raise scope.error("an assignment has one name on its left side.", line)
        if target.id in (*definitions, *scope.names, *FUNCTIONS) or "__" in target.id:
            raise scope.error(
                f"`{target.id[:MAX_NAME]}` is assigned; names are assigned once, are no variables "
                "and no functions, and have no double underscore.",
                line,
            )
        definitions[target.id] = line.value
    match lines[-1:]:
        case [ast.Return(value=ast.expr() as value)]:
            return definitions, value
        case [ast.stmt() as last] if not isinstance(last, ast.Return | ast.Assign):
            raise refusal(last, scope)
    raise scope.error(f"the function returns nothing; {_FORM}.", function)


def _is_docstring(line: ast.stmt) -> bool:
    """Return whether a statement is a text."""
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def _parts(
    node: ast.expr, definitions: Mapping[str, ast.expr], scope: Scope
) -> Iterator[tuple[int, ast.expr]]:
    """Yield signs and summands of what is returned, with those of local names for sums of terms."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "clip":
        limits = [convert(limit, scope) for limit in node.args[1:]]
        if limits == [Number(-LIMIT), Number(LIMIT)]:  # that of every reward
            node = node.args[0]
    rest = [(1, node)]
    while rest:
        sign, node = rest.pop()
        parts = list(summands(node))
        if isinstance(node, ast.Name) and node.id in definitions:
            inner = list(summands(definitions[node.id]))
            parts = inner if any(_local_name(part, definitions) for _, part in inner) else parts
        if parts == [(1, node)]:
            yield sign, node
        else:
            rest += [(sign * other, part) for other, part in reversed(parts)]


def _local_name(node: ast.expr, definitions: Mapping[str, ast.expr]) -> str | None:
    """Return the local name of a product of numbers and this name, or `None`."""
    factors, names = [node], []
    while factors:
        match factors.pop():
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                factors += [left, right]
            case ast.UnaryOp(operand=operand):
                factors.append(operand)
            case ast.Name(id=name) if name in definitions:
                names.append(name)
            case ast.Constant():
                pass
            case _:
                return None
    return names[0] if len(names) == 1 else None
