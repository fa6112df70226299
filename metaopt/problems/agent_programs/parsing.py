"""Reads a program: a recursive descent over names, whole numbers and `( ) , >`; nothing is run."""

from __future__ import annotations

import re
from typing import NamedTuple

from metaopt.problems.agent_programs.grammar import FRESH, MAX_COUNT, Grammar, InvalidProgram
from metaopt.problems.agent_programs.programs import BLOCKS, FORMS, JUDGE, Program

MAX_TEXT = 4000
"""Most characters of a program."""

_TOKEN = re.compile(r"\s*(?:(?P<word>\w[\w.:/-]*)|(?P<sign>[(),>]))")


class Token(NamedTuple):
    """A word or a sign, "" at the end, and its column, from 1."""

    text: str
    column: int

    @property
    def shown(self) -> str:
        """How a message names it."""
        return repr(self.text[:40]) if self.text else "the end of the text"

    @property
    def is_word(self) -> bool:
        """Whether it is a name or a number."""
        return self.text not in ("", "(", ")", ",", ">")


def parse(text: str, grammar: Grammar) -> Program:
    """Return the program that a text states, which prints as its canonical form.

    Raises:
        InvalidProgram: it says anything else, or is beyond the grammar's limits; the message has
            the column and what is legal there.

    Example:
        >>> grammar = Grammar(("solver",), {"numbers": [3]})
        >>> print(parse("route( numbers>3, vote(solve(solver),5), solve )", grammar))
        route(numbers > 3, vote(solve, 5), solve)
    """
    if len(text) > MAX_TEXT:
        raise InvalidProgram(f"{len(text)} characters; at most {MAX_TEXT} are legal.")
    reader = _Reader(_tokens(text), grammar)
    program = reader.program(1)
    reader.expect("", "only the end of the text")
    grammar.check(program)
    return program


def _tokens(text: str) -> list[Token]:
    tokens, position, end = [], 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            column = position + len(text[position:]) - len(text[position:].lstrip()) + 1
            raise InvalidProgram(
                f"{text[column - 1]!r} is not legal; a program has names, whole numbers and the "
                "signs ( ) , >.",
                column,
            )
        tokens.append(Token(match[match.lastgroup or 0], match.start(match.lastgroup or 0) + 1))
        position = match.end()
    return [*tokens, Token("", end + 1)]


class _Reader:
    """Reads tokens from left to right."""

    def __init__(self, tokens: list[Token], grammar: Grammar) -> None:
        self.tokens, self.grammar, self.position = tokens, grammar, 0

    @property
    def next(self) -> Token:
        return self.tokens[self.position]

    def take(self) -> Token:
        token = self.next
        self.position += bool(token.text)
        return token

    def expect(self, text: str, legal: str) -> None:
        token = self.take()
        if token.text != text:
            raise InvalidProgram(f"{token.shown}, where {legal} is legal.", token.column)

    def program(self, depth: int) -> Program:
        token = self.take()
        if token.text not in self.grammar.blocks:
            raise InvalidProgram(self._no_block(token), token.column)
        if depth > self.grammar.depth:  # here, which bounds the recursion
            limit = self.grammar.depth
            raise InvalidProgram(
                f"more than {limit} blocks deep (depth={limit}); nest fewer blocks.", token.column
            )
        if token.text == "solve":
            return self._solve()
        self.expect("(", f"only ( of {FORMS[token.text]}")
        made = self._route(depth) if token.text == "route" else self._block(token, depth)
        self.expect(")", f"only ) of {FORMS[token.text]}")
        return made

    def _no_block(self, token: Token) -> str:
        legal = ", ".join(self.grammar.blocks)
        if token.text in FRESH and not self.grammar.fresh:
            return (
                f"{token.text} needs a fresh call of a model, and the workers are recorded, with "
                f"one solution of each to a question; legal blocks are {legal}."
            )
        if token.text in BLOCKS:
            what = "features to route by" if token.text == "route" else "criteria to select by"
            return f"{token.text} is not legal: these workers have no {what}; legal are {legal}."
        return f"{token.shown} is no block; legal blocks are {legal}."

    def _solve(self) -> Program:
        workers = self.grammar.workers
        if self.next.text != "(":
            if len(workers) > 1:
                raise InvalidProgram(
                    f"solve needs a worker, as solve({workers[0]}); workers are "
                    f"{', '.join(workers)}.",
                    self.next.column,
                )
            return Program("solve")
        self.take()
        token = self._named(workers, "worker")
        self.expect(")", "only ) of solve(worker)")
        return Program("solve", name=token.text if len(workers) > 1 else "")

    def _named(self, legal: tuple[str, ...], what: str) -> Token:
        token = self.take()
        if token.text not in legal:
            raise InvalidProgram(
                f"{token.shown} is no {what}; legal are {', '.join(legal)}.", token.column
            )
        return token

    def _number(self, least: int, what: str) -> int:
        token = self.take()
        digits = token.text if re.fullmatch("[0-9]{1,9}", token.text) else "-1"
        if not least <= int(digits) <= MAX_COUNT:
            raise InvalidProgram(
                f"{token.shown}, where {what} is legal: a whole number from {least} to "
                f"{MAX_COUNT}.",
                token.column,
            )
        return int(digits)

    def _route(self, depth: int) -> Program:
        feature = self._named(tuple(self.grammar.features), "feature").text
        threshold = 0
        if self.next.text == ">":
            self.take()
            threshold = self._number(0, "the threshold")
        parts = []
        for _ in range(2):
            self.expect(",", f"only , of {FORMS['route']}")
            parts.append(self.program(depth + 1))
        return Program("route", tuple(parts), threshold, feature)

    def _block(self, block: Token, depth: int) -> Program:
        """Return a block of one or several programs and, except of several, a count."""
        form, name = FORMS[block.text], ""
        if block.text == "select":
            name = self._criterion()
            self.expect(",", f"only , of {form}")
        several = block.text in ("vote", "select")
        parts = [self.program(depth + 1)]
        for _ in range(block.text == "debate"):
            self.expect(",", f"only , of {form}")
            parts.append(self.program(depth + 1))
        self.expect(",", f"only , of {form}")
        if several and self._at_program():
            parts.append(self.program(depth + 1))
            while self.next.text == ",":
                self.take()
                parts.append(self.program(depth + 1))
            return Program(block.text, tuple(parts), 1, name)
        number = self.next
        count = self._number(2 if several else 1, f"the n of {form}")
        if several and not self.grammar.fresh:
            raise InvalidProgram(
                f"{block.text}(P, n) runs one program n times, and a recorded worker has one "
                f"solution to a question; {block.text} over different ones, as "
                f"{block.text}({'' if not name else name + ', '}P, P).",
                number.column,
            )
        return Program(block.text, tuple(parts), count, name)

    def _criterion(self) -> str:
        token = self.next
        if token.text == JUDGE and JUDGE not in self.grammar.criteria and not self.grammar.fresh:
            raise InvalidProgram(
                "select(judge, ...) needs a fresh call of a model, and the workers are recorded; "
                f"legal criteria are {', '.join(self.grammar.criteria)}.",
                token.column,
            )
        return self._named(self.grammar.criteria, "criterion").text

    def _at_program(self) -> bool:
        return self.next.is_word and not self.next.text.isdigit()
