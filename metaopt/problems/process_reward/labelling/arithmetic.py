"""The arithmetic policy as a policy on texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaopt.problems.process_reward.data.arithmetic_policy import (
    MODULUS,
    MOVE_WORDS,
    NONE,
    RELATIONS,
    ArithmeticPolicy,
)


class ArithmeticCompletion:
    """Completes solutions of the arithmetic world; see
    `metaopt.problems.process_reward.labelling.rollouts.Policy`.

    Args:
        policy: writes the results.
    """

    def __init__(self, policy: ArithmeticPolicy) -> None:
        self.policy = policy
        self.name = policy.name

    def complete(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        draw: np.random.Generator,
    ) -> list[str]:
        """Return the steps that are missing, one per line, in the style of those that are written.

        Raises:
            ValueError: a prompt that is not a question of the arithmetic world.
        """
        read = [_read(prompt) for prompt in prompts]
        most = max((len(moves) for _, moves in read), default=0)
        start, left = np.empty(len(read), int), np.full((len(read), most), NONE)
        for i, ((first, moves), prefix) in enumerate(zip(read, prefixes, strict=True)):
            start[i] = _result(prefix[-1]) if prefix else first
            rest = moves[len(prefix) :]
            left[i, : len(rest)] = rest
        values = self.policy.walk(start, left, draw)
        fresh = draw.integers(0, len(RELATIONS), len(read))
        completions = []
        for i, prefix in enumerate(prefixes):
            relation = prefix[-1].split()[-2] if prefix else RELATIONS[fresh[i]]
            lines, value = [], start[i]
            for move, result in zip(left[i], values[i], strict=True):
                if move != NONE:
                    lines.append(f"{value}{MOVE_WORDS[move]} {relation} {result}")
                    value = result
            completions.append("\n".join(lines))
        return completions


def _read(prompt: str) -> tuple[int, list[int]]:
    """Return start and moves of a question."""
    words = prompt.split(" : ")[-1].split()
    try:
        if int(words[0]) not in range(MODULUS):
            raise ValueError
        moves = [MOVE_WORDS.index(word) for word in words[1:]]
    except (ValueError, IndexError):
        raise ValueError(
            f"--policy arithmetic simulates a solver of questions such as '3 +2 *4': a start of 0 "
            f"to {MODULUS - 1}, then +, - or * with 1 to {MODULUS - 1}, from left to right, modulo "
            f"{MODULUS}; this is none: {prompt!r:.80}. For other questions choose --policy "
            f"transformers or --policy server."
        ) from None
    return int(words[0]), moves


def _result(step: str) -> int:
    """Return the result that a step such as `3+2 = 0` ends with."""
    last = step.split()[-1:]
    if len(step.split()) < 2 or last[0] not in map(str, range(MODULUS)):
        raise ValueError(
            f"--policy arithmetic goes on from steps such as '3+2 = 0', which end with a result of "
            f"0 to {MODULUS - 1}; this does not: {step!r:.80}. For other solutions choose --policy "
            f"transformers or --policy server."
        )
    return int(last[0])
