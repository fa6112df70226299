"""From Python's syntax tree to the language's: a whitelist that refuses the rest by name."""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from metaopt.problems.reward_design.language.errors import InvalidReward
from metaopt.problems.reward_design.language.nodes import (
    Node,
    Number,
    Operation,
    Variable,
)
from metaopt.problems.reward_design.language.operators import (
    FUNCTIONS,
    LEGAL_FUNCTIONS,
    NEGATION,
)

MAX_DEPTH = 6
"""Most nodes from the top of a term's body to a leaf."""

MAX_NODES = 60
"""Most nodes of a reward, with one for each weight."""

MAX_CHARACTERS = 4000
MAX_BRACKETS = 30
MAX_NAME = 40
MAX_NUMBER = 1e12

_COMMENT = re.compile(r"^([^'\"#]*)#.*")  # but not within the text of a docstring
_INFIX = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
_HINTS = {
    "Pow": "the power operator **; write square(x) or a product",
    "Div": "division; multiply by a number instead",
    "FloorDiv": "division; multiply by a number instead",
    "Mod": "the remainder %",
    "Invert": "the operator ~",
    "Attribute": "attribute access",
    "Lambda": "a lambda",
    "ListComp": "a comprehension",
    "SetComp": "a comprehension",
    "DictComp": "a comprehension",
    "GeneratorExp": "a comprehension",
    "NamedExpr": "an assignment within an expression; a term's name stands first in its line",
    "JoinedStr": "an f-string",
    "Subscript": "indexing",
    "Compare": "a comparison; a threshold is written with clip, min or max",
    "IfExp": "a conditional expression; a threshold is written with clip, min or max",
    "BoolOp": "a logical operator",
    "Not": "a logical operator",
    "Starred": "a starred argument",
    "Import": "an import",
    "ImportFrom": "an import",
    "Assign": "an assignment; write `name := weight * body`",
    "FunctionDef": "a function definition",
    "AsyncFunctionDef": "a function definition",
    "ClassDef": "a class",
    "AugAssign": "an assignment to a name that has a value; give the result a new name",
    "AnnAssign": "an assignment with a type; leave out the type",
    "Expr": "an expression whose value is not used",
    "For": "a loop",
    "While": "a loop",
    "If": "a branch; a threshold is written with clip, min or max",
    "Return": "a return before the end of the function",
    "Global": "a global name",
    "With": "a with statement",
    "Try": "a try statement",
    "Tuple": "a tuple",
}  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """What a text may name, and where it stands in the whole.

    Args:
        names: legal variables.
        line, column: lines and columns of the whole text before this one.
        local: trees that local names of a Python function stand for.
        max_depth: of a tree.
    """

    names: Collection[str]
    line: int = 0
    column: int = 0
    local: Mapping[str, Node] = field(default_factory=dict)
    max_depth: int = MAX_DEPTH

    def error(self, problem: str, node: ast.AST) -> InvalidReward:
        """Return the error of a node, at its place."""
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        shift = self.column if line == 1 else 0
        return InvalidReward(problem, self.line + line, column + 1 + shift)


def check_text(text: object) -> str:
    """Return a text of lines without comments, all of characters that the language has.

    Raises:
        InvalidReward: it is no text, empty, too long, has a character that is not ASCII, or
            brackets nested too deeply for a parser.
    """
    if not isinstance(text, str):
        raise InvalidReward(f"a reward is a text; got {type(text).__name__}.")
    if len(text) > MAX_CHARACTERS:
        raise InvalidReward(f"{len(text):,} characters; at most {MAX_CHARACTERS:,} are legal.")
    lines = [_COMMENT.sub(r"\1", line).rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    if not any(lines):
        raise InvalidReward("the text is empty; write lines `name := weight * body`.")
    nesting = 0
    for number, line in enumerate(lines, 1):
        for column, character in enumerate(line, 1):
            if not (" " <= character <= "~" or character == "\t"):
                name = unicodedata.name(character, "a control character")
                raise InvalidReward(
                    f"the character {character!r} (U+{ord(character):04X} {name}) is not legal; "
                    "a reward is ASCII text.", number, column,
                )  # fmt: skip
            nesting += (character in "([{") - (character in ")]}")
            if nesting > MAX_BRACKETS:
                raise InvalidReward(
                    f"brackets nested more than {MAX_BRACKETS} deep; use brackets nested at most "
                    f"{MAX_BRACKETS} deep.", number, column,
                )  # fmt: skip
    return "\n".join(lines)


def statements(text: str, scope: Scope) -> list[ast.stmt]:
    """Return Python's syntax tree of a text; nothing is compiled or run.

    Raises:
        InvalidReward: it is not Python's syntax.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of texts such as `1if`, which are refused below
            return ast.parse(text).body
    except SyntaxError as error:
        line, column = error.lineno or 1, error.offset or 1
        shift = scope.column if line == 1 else 0
        raise InvalidReward(
            f"{error.msg}; write lines `name := weight * body` with numbers, variables, + - * and "
            f"{LEGAL_FUNCTIONS}.", scope.line + line, column + shift,
        ) from None  # fmt: skip
    except (RecursionError, MemoryError, ValueError):
        raise InvalidReward(
            f"nested too deeply; a body is at most {MAX_DEPTH} deep.", scope.line + 1
        ) from None


def convert(node: ast.expr, scope: Scope, depth: int = 1) -> Node:
    """Return the language's tree of an expression.

    Raises:
        InvalidReward: it has anything but numbers, variables, operators and functions of the
            language, or is too deep.
    """
    if depth > scope.max_depth:
        raise scope.error(f"nested too deeply; a body is at most {scope.max_depth} deep.", node)
    if isinstance(node, ast.Constant):
        return Number(_number(node, scope))
    if isinstance(node, ast.Name):
        return _name(node, scope)
    if isinstance(node, ast.BinOp):
        if (operator := _INFIX.get(type(node.op))) is None:
            raise refusal(node.op, scope, node)
        sides = (convert(side, scope, depth + 1) for side in (node.left, node.right))
        return Operation(operator, tuple(sides))
    if isinstance(node, ast.UnaryOp):
        if isinstance(node.op, ast.UAdd):
            return convert(node.operand, scope, depth + 1)
        if not isinstance(node.op, ast.USub):
            raise refusal(node.op, scope, node)
        operand = convert(node.operand, scope, depth + 1)
        if isinstance(operand, Number):  # so that -2 is a number
            return Number(-operand.value)
        return Operation(NEGATION, (operand,))
    if isinstance(node, ast.Call):
        return _call(node, scope, depth)
    raise refusal(node, scope)


def refusal(node: ast.AST, scope: Scope, place: ast.AST | None = None) -> InvalidReward:
    """Return the error that names what a node is."""
    kind = type(node).__name__
    what, _, instead = _HINTS.get(kind, f"Python's {kind}").partition("; ")
    if isinstance(node, ast.Attribute):
        what = f"attribute access `.{node.attr[:MAX_NAME]}`"
    advice = f" {instead[:1].upper()}{instead[1:]}." if instead else ""
    return scope.error(
        f"{what} is not in the language.{advice} Legal are numbers, variables, + - * and "
        f"{LEGAL_FUNCTIONS}.",
        place or node,
    )


def _number(node: ast.Constant, scope: Scope) -> float:
    """Return the value of a numeric constant."""
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = f"the constant {value!r}"
        if isinstance(value, str | bytes):  # whatever their length
            kind = "a string" if isinstance(value, str) else "a string of bytes"
        raise scope.error(f"{kind} is not in the language; constants are numbers.", node)
    if abs(value) > MAX_NUMBER:
        raise scope.error(
            f"a number beyond {MAX_NUMBER:.0e} in size; use numbers within +-{MAX_NUMBER:.0e}.",
            node,
        )
    return float(value)


def _name(node: ast.Name, scope: Scope) -> Node:
    """Return a variable, or the tree that a local name stands for."""
    if "__" in node.id:
        raise scope.error(f"the double-underscore name `{node.id[:MAX_NAME]}` is not legal.", node)
    if node.id in scope.local:
        return scope.local[node.id]
    if node.id in scope.names:
        return Variable(node.id)
    if node.id in FUNCTIONS:
        raise scope.error(f"`{node.id}` is a function; write its arguments in brackets.", node)
    near = get_close_matches(node.id, scope.names, 1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise scope.error(
        f"`{node.id[:MAX_NAME]}` is no variable; legal are {', '.join(sorted(scope.names))}.{hint}",
        node,
    )


def _call(node: ast.Call, scope: Scope, depth: int) -> Node:
    """Return a function with its arguments."""
    if not isinstance(node.func, ast.Name):
        raise refusal(node.func, scope)
    name = node.func.id
    if "__" in name:
        raise scope.error(f"the double-underscore name `{name[:MAX_NAME]}` is not legal.", node)
    if (function := FUNCTIONS.get(name)) is None:
        raise scope.error(f"call of `{name[:MAX_NAME]}`; functions are {LEGAL_FUNCTIONS}.", node)
    if node.keywords:
        raise scope.error(f"`{name}` takes no keyword arguments.", node)
    if not function.fewest <= len(node.args) <= function.most:
        many = str(function.fewest) + (
            f" to {function.most}" if function.most > function.fewest else ""
        )
        raise scope.error(f"`{name}` has {len(node.args)} arguments; legal is {many}.", node)
    arguments = tuple(convert(argument, scope, depth + 1) for argument in node.args)
    match arguments[1:]:
        case [Number(low), Number(high)] if name == "clip" and low > high:
            raise scope.error(f"clip from {low:g} to {high:g}; write the lower one first.", node)
    return Operation(name, arguments)


def summands(node: ast.expr) -> Iterator[tuple[int, ast.expr]]:
    """Yield sign and expression of each summand of a sum, in order, without recursion."""
    rest: list[tuple[int, ast.expr]] = [(1, node)]
    while rest:
        sign, last = rest.pop()
        if isinstance(last, ast.BinOp) and isinstance(last.op, ast.Add | ast.Sub):
            right = sign if isinstance(last.op, ast.Add) else -sign
            rest += [(right, last.right), (sign, last.left)]
        else:
            yield sign, last
