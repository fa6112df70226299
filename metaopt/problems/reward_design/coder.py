"""The coder: a language model that is asked for rewards, and answered where one cannot be read."""

from __future__ import annotations

import re
from collections.abc import Callable

from metaopt.engine.random import fold
from metaopt.engine.ranges import check_ranges
from metaopt.llm import Client, NotUnderstood, Parameters, Reply, Request
from metaopt.llm.chat import Message
from metaopt.llm.score_replies import form
from metaopt.problems.reward_design.prompts import Answer, complaining, read_answer
from metaopt.problems.text import whole

ROLE = "coder"

Read = Callable[[Answer], str]
"""Returns the reward of an answer in the form in which rewards are kept.

Raises:
    ValueError: it is none; says what is wrong in a sentence.
"""


class Coder:
    """Asks the role coder for rewards; whatever it writes is parsed and never executed.

    An answer that holds no reward goes back with what is wrong with it, and is counted.

    Args:
        client: the language models, with the role coder.
        read: reads an answer.
        parameters: how the coder answers.
        attempts: most answers that are asked for until one is a reward, >= 1.

    Attributes:
        answers, unreadable: answers so far, and those of them that held no reward.
    """

    def __init__(
        self, client: Client, read: Read, parameters: Parameters, attempts: int = 3
    ) -> None:
        self.client, self.read, self.parameters = client, read, parameters
        self.attempts = attempts
        check_ranges(self, "attempts >= 1")
        self.answers = self.unreadable = 0

    def __call__(
        self, question: tuple[Message, ...], key: int, count: int = 1, first: bool = False
    ) -> list[str]:
        """Return up to `count` rewards; fewer where the client stopped or no answer was one.

        Args:
            question: as `prompts.asking` returns it.
            key: of the draws: it is in the index of every request.
            count: rewards that are asked for together, each in a conversation of its own.
            first: whether no answer has been read before: then one must be.

        Raises:
            LMError: a request failed other than by a policy or a budget.
            NotUnderstood: `first`, and none of three or more answers was a reward.
        """
        open_conversations = dict.fromkeys(range(count), question)
        rewards: dict[int, str] = {}
        reason = ""
        for attempt in range(self.attempts):
            replies = self._ask(open_conversations, fold(key, attempt))
            for place, reply in replies.items():
                self.answers += 1
                try:
                    rewards[place] = self.read(_stated(reply, self.parameters.max_tokens))
                    del open_conversations[place]
                except ValueError as error:
                    self.unreadable += 1
                    reason = str(error)
                    open_conversations[place] = complaining(question, reply.text, reason)
            if not open_conversations or self.client.stopped:
                break
        if first and not rewards and not self.client.stopped and count * self.attempts >= 3:
            raise NotUnderstood(_complaint(reply, reason, count * self.attempts), ROLE)
        return [rewards[place] for place in sorted(rewards)]

    def _ask(self, conversations: dict[int, tuple[Message, ...]], key: int) -> dict[int, Reply]:
        """Return the replies by place, of those requests that a policy or a budget let through."""
        requests = [
            Request(ROLE, messages, self.parameters, fold(key, place) % 2**31)
            for place, messages in conversations.items()
        ]
        replies = {}
        for place, answer in zip(conversations, self.client.ask_all(requests), strict=True):
            if isinstance(answer, Reply):
                replies[place] = answer
            elif not self.client.stopped:
                raise answer
        return replies


def _stated(reply: Reply, most: int) -> Answer:
    text = whole(reply)
    if text is None:
        raise ValueError(f"it was cut off after {most} tokens.")
    answer = read_answer(text)
    if answer is None:
        raise ValueError(
            "there is no block that starts with ```reward, and no line that is a term."
        )
    return answer


def _complaint(reply: Reply, reason: str, count: int) -> str:
    lines = "".join(f"\n    {line}" for line in form(reply.text).splitlines())
    shown = re.sub("`[^`]*`", "`...`", reason)  # of what a model writes nothing is printed
    cut = " It is cut: raise problem.max_tokens." if reply.finish == "length" else ""
    return (
        f"coder: none of {count} answers holds a reward, lines '<name> := <weight> * <expression>' "
        f"in a block of three backquotes. What is wrong with the last one: {shown} It has "
        f"{len(reply.text)} characters and ends with (letters shown as x, digits as 9):"
        f"{lines or ' nothing'}{cut}"
    )
