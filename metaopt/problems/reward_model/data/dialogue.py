"""Conversations as plain text and back, in the format of HH-RLHF."""

from __future__ import annotations

import re
from itertools import takewhile

from metaopt.problems.reward_model.data.pair import Message, Pair, Text

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant|System): ?")
ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
ALIASES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
"""Names of roles elsewhere: in ShareGPT's files, and of Gemma."""

SPEAKER = re.compile(r"(?:\A|\n)\s*(Human|User|Assistant|System):")
TAG = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|)\s*"
    r"(user|human|assistant|model|system|tool)\b(?:<\|end_header_id\|>|\|>)?"
)
"""What begins a turn in a text: of a dialogue as people write it, or of a chat template."""

NAMES = {role: name for name, role in ROLES.items()}


def plain(pair: Pair) -> Pair:
    """Return the pair as plain text, where prompt + answer is what a model reads.

    A conversation becomes HH-RLHF's "\\n\\nHuman: ...\\n\\nAssistant: ...", so that pairs of all
    sources look alike to one reward model; plain text stays as it is.

    Raises:
        ValueError: a role that this format has no name for.
    """
    if isinstance(pair.prompt, str):
        return pair
    prompt, chosen, rejected = (_rendered(t) for t in (pair.prompt, pair.chosen, pair.rejected))
    if chosen.startswith(ASSISTANT) and rejected.startswith(ASSISTANT):
        prompt += ASSISTANT
        chosen, rejected = chosen[len(ASSISTANT) :], rejected[len(ASSISTANT) :]
    return pair._replace(prompt=prompt, chosen=chosen, rejected=rejected)


def conversation(pair: Pair) -> Pair:
    """Return the pair as conversations.

    Text in HH-RLHF's format is taken apart into its turns; other text is one user's message,
    answered by one of the assistant. A conversation stays as it is.
    """
    if not isinstance(pair.prompt, str):
        return pair
    sides = str(pair.chosen), str(pair.rejected)
    if pair.prompt.startswith(HUMAN) and pair.prompt.endswith(ASSISTANT):
        prompt = _turns(pair.prompt[: -len(ASSISTANT)])
        chosen, rejected = (_turns(ASSISTANT + side) for side in sides)
    else:
        prompt = (Message("user", pair.prompt),) if pair.prompt else ()
        chosen, rejected = ((Message("assistant", side),) for side in sides)
    return pair._replace(prompt=prompt, chosen=chosen, rejected=rejected)


def common_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Return (prompt, chosen, rejected) of two whole dialogues.

    The prompt is what they have in common, up to and with the marker of the last common turn of
    the assistant; () or "" where they share nothing, or are texts without such a marker.
    """
    both = zip(chosen, rejected, strict=False)
    cut = sum(1 for _ in takewhile(lambda at: at[0] == at[1], both))
    if isinstance(chosen, str):  # two answers may begin with the same words: cut at a marker
        at = chosen.rfind(ASSISTANT, 0, cut)
        cut = at + len(ASSISTANT) if at >= 0 else 0
    return chosen[:cut], chosen[cut:], rejected[cut:]


def turns(prompt: Text, side: Text) -> list[Message]:
    """Return the turns of a prompt and an answer to it, without spaces at their ends.

    Of texts, those that `SPEAKER` or `TAG` mark; none where there are no marks, or none in the
    answer and none of the assistant in the prompt.
    """
    if not isinstance(side, str):
        return [Message(role, content.strip()) for role, content in (*prompt, *side)]
    for text in (f"{prompt}{side}", side):
        marks = SPEAKER if SPEAKER.match(text) else TAG
        _, *parts = marks.split(text)
        roles = [ALIASES.get(name.lower(), name.lower()) for name in parts[::2]]
        if "assistant" in roles or (roles and (text == side or text.startswith(HUMAN))):
            said = map(str.strip, parts[1::2])
            return [Message(role, words) for role, words in zip(roles, said, strict=True)]
    return []


def _turns(text: str) -> tuple[Message, ...]:
    parts = TURN.split(text)[1:]
    return tuple(
        Message(ROLES[name], said) for name, said in zip(parts[::2], parts[1::2], strict=True)
    )


def _rendered(text: Text) -> str:
    if isinstance(text, str):
        return text
    words = ""
    for role, content in text:
        if role not in NAMES:
            raise ValueError(
                f"plain text has no name for the role {role!r}; it has {', '.join(NAMES)}."
            )
        words += f"\n\n{NAMES[role]}: {content}"
    return words
