"""The next program: a question to the rewriter about the programs tried, and its answer read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metaopt.engine.random import fold
from metaopt.engine.ranges import check_ranges
from metaopt.llm import Client, LMError, NotUnderstood, Parameters, Request, user
from metaopt.llm.chat import Message
from metaopt.problems.agent_programs.grammar import Grammar
from metaopt.problems.agent_programs.parsing import parse
from metaopt.problems.text import TextTrial, whole

ROLE = "rewriter"

TASK = """\
Write a program that answers questions by calls of language models. A program is one block:
{words}
solve asks a worker for a solution. vote takes the most frequent answer. select picks a solution.
refine has n rounds in which a solution is looked through and perhaps changed. critique has n rounds
in which a critic reads a solution and, where it finds it wrong, a second call changes it. debate
has n rounds in which two sides with different answers read each other. route looks at the question.
A question may take {calls} calls at most: {price}."""

FRESH_PRICE = (
    "solve, a round of refine, the critic, its revision, a side's turn in a debate and the judge "
    "are a call each; vote(P, n) is n times P"
)
RECORDED_PRICE = "each different worker is a call"

TRIED = "Programs so far: accuracy on training questions, mean calls"
CURRENT = "Program to improve on"
ERRORS = "Its errors, by questions"
REQUEST = (
    "Write one new program that answers more questions right, in one block between ``` and ```. "
    "What you write beside the block is not read."
)

_BLOCK = re.compile(r"```[ \t]*(?:\w+[ \t]*)?\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_CURRENT = re.compile(rf"^{CURRENT}:\n```\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
_ERROR = re.compile(r"^- (\S+) > (\d+): (\d+) questions, (\d+) wrong$", re.MULTILINE)

Evidence = Sequence[Mapping[str, Any]]
"""Rows {feature, threshold, questions, wrong}: questions with feature > threshold."""


class Rewriting:
    """Asks the role `rewriter` for programs; whatever it writes is parsed and never executed.

    Args:
        client: the language models, with that role.
        grammar: what is legal.
        parameters: how the rewriter answers.
        programs_in_context: programs that it is shown, >= 1.
        evidence: whether it is shown the errors by the questions' features.
        attempts: most answers that are asked for until one is a legal program, >= 1.

    Attributes:
        unreadable: answers so far that were no legal program.
    """

    def __init__(
        self,
        client: Client,
        grammar: Grammar,
        parameters: Parameters,
        programs_in_context: int = 5,
        evidence: bool = True,
        attempts: int = 3,
    ) -> None:
        self.client, self.grammar, self.parameters = client, grammar, parameters
        self.programs_in_context, self.evidence = programs_in_context, evidence
        self.attempts, self.unreadable = attempts, 0
        check_ranges(self, "programs_in_context >= 1", "attempts >= 1")

    def __call__(self, parents: Sequence[TextTrial], key: int) -> str:
        """Return a new program in its canonical form; the best one again where none is written.

        The program to improve on is the best with probability 1/2, the second with 1/4, and so on.

        Args:
            parents: all trials, best first.
            key: of the draws.

        Raises:
            LMError: the request failed other than by a policy or a budget.
            NotUnderstood: none of three or more answers to the first question was a program.
        """
        tried = list(parents[: self.programs_in_context])
        rank = int(np.random.default_rng(fold(key, "parent")).geometric(0.5)) - 1
        question = asking(self.grammar, tried, tried[rank % len(tried)], self.evidence)
        messages, reason = question, ""
        for attempt in range(self.attempts):
            rollout = fold(key, "rewriter", attempt) % 2**31
            (reply,) = self.client.ask_all([Request(ROLE, messages, self.parameters, rollout)])
            if isinstance(reply, LMError):
                if self.client.stopped:
                    return parents[0].outer
                raise reply
            try:
                return str(parse(_stated(whole(reply)), self.grammar))
            except ValueError as error:
                self.unreadable += 1
                reason = str(error)
                messages = _complaining(question, reply.text, reason)
        if len(parents) == 1 and self.attempts >= 3:
            shown = re.sub("'[^']*'", "'...'", reason)  # of what a model writes nothing is printed
            raise NotUnderstood(
                f"rewriter: none of {self.attempts} answers holds a legal program, in a block of "
                f"three backquotes or on its last line. What is wrong with the last one: {shown}",
                ROLE,
            )
        return parents[0].outer


def asking(
    grammar: Grammar, tried: Sequence[TextTrial], current: TextTrial, evidence: bool
) -> tuple[Message, ...]:
    """Return the question for a program."""
    price = FRESH_PRICE if grammar.fresh else RECORDED_PRICE
    artifacts = current.artifacts or {}
    parts = [TASK.format(words=grammar.words, calls=grammar.calls, price=price)]
    if tried:
        parts.append("\n".join([f"{TRIED}:", *map(_tried, tried)]))
    parts.append(f"{CURRENT}:\n```\n{current.outer}\n```")
    if evidence and artifacts.get("evidence"):
        rows = [
            f"- {e['feature']} > {e['threshold']}: {e['questions']} questions, {e['wrong']} wrong"
            for e in artifacts["evidence"]
        ]
        parts.append("\n".join([f"{ERRORS}:", *rows]))
    return user("\n\n".join([*parts, REQUEST]))


def _tried(trial: TextTrial) -> str:
    artifacts = trial.artifacts or {}
    accuracy, calls = artifacts.get("accuracy", 0.0), artifacts.get("calls", 0.0)
    return f"- {100 * accuracy:.1f} %, {calls:.2f} calls: {trial.outer}"


def _stated(text: str | None) -> str:
    """Return where a reply states a program: its last block, else its last line."""
    if text is None:
        raise ValueError("the answer was cut off; raise max_tokens.")
    blocks = [block for block in _BLOCK.findall(text) if block.strip()]
    if blocks:
        return " ".join(blocks[-1].split())
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().strip("`") if lines else ""


def _complaining(question: tuple[Message, ...], reply: str, error: str) -> tuple[Message, ...]:
    content = f"This is no legal program. {error} {REQUEST}"
    return (
        *question,
        {"role": "assistant", "content": reply},
        {"role": "user", "content": content},
    )


def shown_program(text: str) -> str:
    """Return the program to improve on that a question shows."""
    match = _CURRENT.search(text)
    if match is None:
        raise ValueError("the message shows no program.")
    return match[1]


def shown_errors(text: str) -> list[tuple[str, int, int, int]]:
    """Return feature, threshold, questions and wrong ones of the rows that a question shows."""
    rows = _ERROR.findall(text.partition(f"{ERRORS}:")[2])
    return [(feature, int(t), int(n), int(w)) for feature, t, n, w in rows]
