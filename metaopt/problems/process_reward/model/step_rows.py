"""Chains as rows of tokens for a frozen model, and where in them each step is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from metaopt.problems.process_reward.model.packing import Row
from metaopt.problems.process_reward.model.tokens import TokenLayout


class Span(NamedTuple):
    """Tokens first to end, exclusive, of a row: one step of an item, with its separator."""

    item: int
    step: int
    row: int
    first: int
    end: int


def step_rows(
    items: Sequence[Sequence[str]],
    tokens: TokenLayout,
    max_length: int,
    chain: bool,
    share: bool,
    longest: int,
) -> tuple[list[Row], list[Span]]:
    """Return what a model reads of chains, and where in it each step is.

    Args:
        items: question and steps of each chain, chains of one question next to each other.
        tokens: splits texts into tokens.
        max_length: most tokens of a sequence. A step whose sequence is longer is read in a row of
            its own that `_cut` makes.
        chain: whether steps share a row; otherwise each is read in a row that ends with it.
        share: whether answers to one question share a row.
        longest: tokens beyond which a row takes no further answer.

    Raises:
        ValueError: a step without tokens, or one with no token before it.
    """
    ids = iter(tokens.ids([text for item in items for text in item]))
    rows: list[Row] = []
    spans: list[Span] = []
    shared = None  # question of the last row, where it may take another answer
    for i, item in enumerate(items):
        asked, *steps = (next(ids) + tokens.separator for _ in item)
        if not all(steps):
            raise ValueError(
                f"a step of {item!r:.80} has no token; drop it, or give a separator to read."
            )
        stem = tokens.start + asked
        ends = list(accumulate(map(len, steps), initial=len(stem)))
        fit = sum(end <= max_length for end in ends[1:]) if chain and stem else 0
        if fit:
            answer = [token for step in steps[:fit] for token in step]
            if not share or item[0] != shared or len(rows[-1]) + len(answer) > longest:
                rows.append(Row(stem))
                shared = item[0]
            at = len(rows[-1]) - len(stem)
            rows[-1].branches.append(answer)
            row = len(rows) - 1
            spans += [Span(i, s, row, at + ends[s], at + ends[s + 1]) for s in range(fit)]
        for s in range(fit, len(steps)):
            earlier = [token for step in steps[:s] for token in step]
            before, step = _cut(stem, len(tokens.start), earlier, steps[s], max_length)
            if not before:
                raise ValueError(
                    f"step {s + 1} of {item!r:.80} has no token before it, from which its first "
                    f"one is predicted: the tokenizer has no start token and the question is "
                    f"empty. Give a question, or a separator."
                )
            rows.append(Row(before, [step]))
            spans.append(Span(i, s, len(rows) - 1, len(before), len(before) + len(step)))
            shared = None
    return rows, spans


def _cut(
    stem: list[int], start: int, earlier: list[int], step: list[int], max_length: int
) -> tuple[list[int], list[int]]:
    """Return what is before a step, and the step, in max_length tokens.

    What does not fit is the oldest of the earlier steps first, then the beginning of the question
    after its `start` special tokens, then that of the step, which leaves a token before it.
    """
    step = step[-max(max_length - max(start, 1), 1) :]
    room = max_length - len(step)
    asked = stem[:start] + stem[max(start, len(stem) - (room - start)) :]
    fitting = min(len(earlier), max(room - len(asked), 0))
    return asked + earlier[len(earlier) - fitting :], step
