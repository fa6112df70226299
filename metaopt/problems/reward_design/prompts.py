"""What the coder is asked, and where its answer holds a reward.

A question has the task, the names that a reward may use, the form of a reward and, after the first
one, the reward that the answer should improve on, with what is known of it (`feedback_text`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from metaopt.llm import user
from metaopt.llm.chat import Message

FORM = """\
A reward is a sum of terms, one on each line: a name for the term, the sign := and a weight times an
expression. An expression is made of the quantities above, of numbers, of + - * and of the functions
min, max, abs, square, clip(x, low, high), sin and cos, for example:
```reward
size := 1.0 * abs({name})
excess := -0.5 * clip(square({name}) - 0.1, 0, 1)
```
Nothing else is understood: no division, no comparison, no other names. The reward of a step is
clipped to [-10, 10]."""

NAMES = "Quantities of a step that the reward may use:\n"
CURRENT = "The reward to improve on"
ANSWER = (
    "Write one new reward that makes more episodes succeed, all of its terms, in one block between "
    "```reward and ```. What you write beside the block is not read."
)

_BLOCK = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_CURRENT = re.compile(rf"^{CURRENT}.*?:\n```reward\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
_SUCCESS = re.compile(rf"^{CURRENT}, under which (\d+) % of episodes succeeded:$", re.MULTILINE)
_NAME = re.compile(r"^- ([A-Za-z_]\w*): ", re.MULTILINE)
_TERM = re.compile(r"[ \t]*(?:[A-Za-z]\w*[ \t]*:=|[-+]?[ \t]*(?:\d|\.\d).*\*)")
_DEF = re.compile(r"^[ \t]*def\s", re.MULTILINE)


class Assignment(NamedTuple):
    """What a coder is told whatever has been tried.

    Args:
        task: what is to be achieved and when an episode succeeds, in sentences.
        variables: what each name means that a reward may use, by name.
    """

    task: str
    variables: Mapping[str, str]


def asking(
    assignment: Assignment, reward: str | None = None, success: float | None = None, known: str = ""
) -> tuple[Message, ...]:
    """Return the question for a reward.

    Args:
        assignment: the task.
        reward: the text of the reward to improve on; `None` for the first one.
        success: share of episodes that succeeded under it in [0, 1], `None` where it was not
            trained under.
        known: further feedback on it, or nothing.
    """
    name = next(iter(assignment.variables))
    parts = [
        "Write the reward under which reinforcement learning is to solve a task.",
        f"Task: {assignment.task}",
        NAMES + "\n".join(f"- {name}: {text}" for name, text in assignment.variables.items()),
        FORM.format(name=name),
    ]
    if reward is not None:
        rate = "" if success is None else f", under which {success:.0%} of episodes succeeded"
        parts.append(f"{CURRENT}{rate.replace('%', ' %')}:\n```reward\n{reward}\n```")
    return user("\n\n".join([*parts, *([known] if known else []), ANSWER]))


def complaining(messages: tuple[Message, ...], reply: str, error: str) -> tuple[Message, ...]:
    """Return the conversation that goes on with what is wrong with a reply."""
    content = f"No reward can be read from this: {error} {ANSWER}"
    return (
        *messages,
        {"role": "assistant", "content": reply},
        {"role": "user", "content": content},
    )


class Answer(NamedTuple):
    """Where a reply states a reward.

    Args:
        text: the reward, as it is written.
        python: whether it is a Python function.
    """

    text: str
    python: bool


def read_answer(reply: str) -> Answer | None:
    """Return the reward in the last block of a reply; without a block, its lines that are terms.

    A block is Python where it says so or defines a function. Nothing is parsed here.
    """
    blocks = [(kind, body) for kind, body in _BLOCK.findall(reply) if body.strip()]
    if blocks:
        kind, body = blocks[-1]
        return Answer(body, kind == "python" or _DEF.search(body) is not None)
    if function := _DEF.search(reply):
        return Answer(reply[function.start() :], True)
    lines = [line for line in reply.splitlines() if _TERM.match(line)]
    return Answer("\n".join(lines), False) if lines else None


def shown_names(text: str) -> list[str]:
    """Return the names that a question lists."""
    return _NAME.findall(text.partition(NAMES)[2].partition("\n\n")[0])


def shown_reward(text: str) -> str | None:
    """Return the reward that a question shows, or `None`."""
    match = _CURRENT.search(text)
    return match and match[1]


def shown_success(text: str) -> float | None:
    """Return the share of episodes that succeeded under the reward shown, or `None`."""
    match = _SUCCESS.search(text)
    return int(match[1]) / 100 if match else None
