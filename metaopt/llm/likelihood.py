"""Log probabilities of texts that a causal language model may go on with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_LOGITS = 2**26
"""Logits of one forward pass: 256 MiB in float32."""

MOST_PADDED = 1.2
"""Length of a batch with its padding, over that without."""


class Continuation(NamedTuple):
    """Tokens `tail` that may follow the tokens `prompt`; neither is empty."""

    prompt: Sequence[int]
    tail: Sequence[int]


Row = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt, and what of a tail comes before its last token."""


@torch.inference_mode()
def log_probabilities(
    model: Any, continuations: Sequence[Continuation], pad: int, batch_size: int
) -> list[float]:
    """Return log p(tail | prompt), the sum over the tail's tokens, of each continuation.

        log p(t_1 .. t_n | prompt) = sum_k log softmax(logits(prompt, t_1 .. t_{k-1}))[t_k]

    Continuations that differ in their last token alone share a row of the batch, so that choices of
    one token each are the softmax of one position.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        continuations: padded on the left to one length; a row's positions count its own tokens.
        pad: the token to pad with, which is masked.
        batch_size: most rows of one forward pass.

    Raises:
        FloatingPointError: logits that are not numbers.

    Cost: one forward pass over each different (prompt, tail without its last token), in as many
    batches as keep the logits below `MOST_LOGITS` and the padding below `MOST_PADDED` beyond one
    row.
    """
    rows: dict[Row, list[int]] = {}
    for i, each in enumerate(continuations):
        rows.setdefault((tuple(each.prompt), tuple(each.tail[:-1])), []).append(i)
    result = [0.0] * len(continuations)
    for batch in _batches(list(rows), model.config.get_text_config().vocab_size, batch_size):
        width = max(len(before) for _, before in batch) + 1
        logits = _logits(model, [[*prompt, *before] for prompt, before in batch], pad, width)
        for (prompt, before), row in zip(batch, logits, strict=True):
            # In float64: a sum of hundreds of tokens keeps the digits of a single one.
            log_p = row[width - 1 - len(before) :].double().log_softmax(-1)
            if log_p.isnan().any():
                raise FloatingPointError("The model's logits are not numbers; try dtype=float32.")
            at = torch.arange(len(before), device=log_p.device)
            shared = log_p[at, torch.tensor(before, dtype=torch.long, device=log_p.device)].sum()
            members = rows[prompt, before]
            last = torch.tensor([continuations[i].tail[-1] for i in members], device=log_p.device)
            for i, value in zip(members, (shared + log_p[-1, last]).tolist(), strict=True):
                result[i] = value
    return result


def _batches(rows: list[Row], vocabulary: int, batch_size: int) -> list[list[Row]]:
    """Return the rows in batches of bounded logits and of similar lengths."""
    rows.sort(key=lambda row: (len(row[0]) + len(row[1]), len(row[1])))
    batches: list[list[Row]] = []
    tokens = positions = 0
    for row in rows:
        length, scored = len(row[0]) + len(row[1]), len(row[1]) + 1
        count = len(batches[-1]) + 1 if batches else 1
        tokens, positions = tokens + length, max(positions, scored)
        fits = count <= batch_size and count * positions * vocabulary <= MOST_LOGITS
        if batches and fits and count * length <= MOST_PADDED * tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            tokens, positions = length, scored
    return batches


def _logits(model: Any, rows: Sequence[list[int]], pad: int, last: int) -> Tensor:
    """Return the logits (rows, last, vocabulary) of the last positions."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor(
        [[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device
    )
    known = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {
        # Counted from a row's own first token: padding must not shift it.
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "logits_to_keep": last,
    }
    options = {name: value for name, value in options.items() if name in known}
    logits: Tensor = model(ids, attention_mask=mask, use_cache=False, **options).logits
    return logits[:, -last:]
