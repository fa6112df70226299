"""Texts as the tokens that a reward model reads, read in batches, and how many it has room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from metaopt.nn.positions import positions


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int | None = None,
    templated: bool = False,
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return token ids (B, T), their attention mask (B, T), and the indices of texts cut short.

    A text that is too long loses its beginning, as the answer is at the end, but not the tokens
    that the tokenizer puts around every text: [CLS], where an encoder reads, is still the first.
    That is what the tokenizer itself does with truncation_side="left".

    Args:
        tokenizer: any; it is left as it is, and needs no pad token.
        texts: prompt + answer.
        max_length: most tokens of a text, or `None` for no limit.
        templated: the texts come from a chat template, which has put special tokens around them:
            none is added, and one that begins texts stays where a text is cut.

    Raises:
        ValueError: a text without tokens, or a limit that leaves no room next to special tokens.
    """
    rows = tokenizer(list(texts), verbose=False, add_special_tokens=not templated)["input_ids"]
    if not all(rows):
        empty = [i for i, row in enumerate(rows) if not row]
        raise ValueError(f"texts {empty} have no token, so there is no reward.")
    cut = tuple(i for i, row in enumerate(rows) if max_length is not None and len(row) > max_length)
    for i in cut:
        before, after = _around(tokenizer, texts[i], rows[i], templated)
        room = (max_length or 0) - before - after
        if room < 1:
            raise ValueError(
                f"max_length={max_length} leaves no token of a text next to {before + after} "
                f"special ones; use {before + after + 1} or more."
            )
        rows[i] = rows[i][:before] + rows[i][-room - after :]
    rows = [torch.tensor(row) for row in rows]
    pad = tokenizer.pad_token_id or 0
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    ones = [torch.ones_like(row) for row in rows]
    return ids, nn.utils.rnn.pad_sequence(ones, batch_first=True), cut


@torch.no_grad()
def read_texts(
    read: Callable[[Tensor, Tensor], Tensor],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch: int,
    device: torch.device | str,
    max_length: int | None = None,
    templated: bool = False,
) -> tuple[Tensor, int]:
    """Return what a model reads of texts, (n, ...) on the CPU, and how many of them were cut.

    Texts of like length share a forward pass, so that little of it is padding.

    Args:
        read: token ids (B, T) and their mask to (B, ...).
        tokenizer, texts, max_length, templated: see `encode`.
        batch: texts in a forward pass, >= 1.
        device: of the model.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    results, cut = [], 0
    for start in range(0, len(order), batch):
        chunk = [texts[i] for i in order[start : start + batch]]
        ids, mask, shortened = encode(tokenizer, chunk, max_length, templated)
        results.append(read(ids.to(device), mask.to(device)).cpu())
        cut += len(shortened)
    return torch.cat(results)[torch.tensor(order).argsort()], cut


def check_room(max_length: int, model: nn.Module) -> None:
    """Raise a `ValueError` where texts may have more tokens than a model has positions for."""
    room = positions(model)
    if room is not None and max_length > room:
        raise ValueError(
            f"max_length={max_length} is more than the {room} positions that the backbone has "
            f"learned; use max_length={room} or less, or a backbone with more."
        )


def _around(
    tokenizer: PreTrainedTokenizerBase, text: str, row: list[int], templated: bool
) -> tuple[int, int]:
    """Return how many tokens before and after those of the text itself are always kept."""
    if templated:
        return int(row[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)), 0
    bare = tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]
    more = len(row) - len(bare)
    before = next((i for i in range(more + 1) if row[i : i + len(bare)] == bare), 0)
    return before, more - before
