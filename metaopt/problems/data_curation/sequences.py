"""Rows as token ids, by the rules of TRL's trainers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaopt.problems.data_curation.trl_rows import Texts, Turns

IGNORED = -100
"""Label of a token that is not trained on."""

TRUNCATIONS = ("keep_start", "keep_end")


class Encoded(NamedTuple):
    """A row as token sequences, of a pair two.

    Args:
        ids: of each sequence.
        labels: of each token, its id or its class; `IGNORED` where nothing is trained on.
        margin: of a pair.
    """

    ids: tuple[list[int], ...]
    labels: tuple[list[int], ...]
    margin: float = 0.0


class Batch(NamedTuple):
    """Rows of S sequences each, padded on the right to T tokens.

    Args:
        ids, labels: (B, S, T).
        mask: True where a token is no padding, (B, S, T).
        margin: (B,).
        reference: log-probabilities of the completions under a reference model, (B, S); `None`
            where the loss has none.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    margin: Tensor
    reference: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a transformers model takes, B S rows."""
        return {
            "input_ids": self.ids.flatten(0, 1), "attention_mask": self.mask.flatten(0, 1).long()
        }  # fmt: skip


class Sequences:
    """The token sequences of n rows, without padding, as one tensor on a device.

    Args:
        rows: each of S sequences.
        pad: id of what fills a batch.
        device: where they live.
    """

    def __init__(self, rows: Sequence[Encoded], pad: int, device: torch.device) -> None:
        every = [(i, y) for row in rows for i, y in zip(row.ids, row.labels, strict=True)]
        self.pad, self.device = pad, device
        # On the CPU, as rows are, so that the width of a batch is known without waiting.
        lengths = torch.tensor([len(ids) for ids, _ in every], dtype=torch.long)
        self._lengths = lengths.view(len(rows), -1) if rows else lengths.view(0, 1)
        self._starts = (lengths.cumsum(0) - lengths).view(self._lengths.shape)
        self._ids = torch.tensor([t for ids, _ in every for t in ids], device=device)
        self._labels = torch.tensor([t for _, labels in every for t in labels], device=device)
        self._margin = torch.tensor([row.margin for row in rows], device=device)
        self.reference: Tensor | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def take(self, rows: Tensor) -> Batch:
        """Return the rows of indices on the CPU."""
        lengths, starts = self._lengths[rows], self._starts[rows]
        places = torch.arange(int(lengths.max()))
        mask = places < lengths[..., None]
        at = torch.where(mask, starts[..., None] + places, 0).to(self.device)
        mask, rows = mask.to(self.device), rows.to(self.device)
        return Batch(
            self._ids[at].masked_fill(~mask, self.pad),
            self._labels[at].masked_fill(~mask, IGNORED),
            mask,
            self._margin[rows],
            None if self.reference is None else self.reference[rows],
        )


def token_ids(tokenizer: Any, text: str | Turns, **template: Any) -> list[int]:
    """Return the ids of a text, with the special tokens that the tokenizer adds, or of messages.

    Raises:
        ValueError: messages for a tokenizer without a chat template, or that its template refuses.
    """
    if isinstance(text, str):
        return list(tokenizer(text, verbose=False)["input_ids"])
    if not tokenizer.chat_template:
        raise ValueError(
            "has messages, and the tokenizer has no chat template; give texts, or the tokenizer of "
            "an instruction-tuned model"
        )
    from jinja2 import TemplateError

    try:
        # `return_dict`: without it a new version of transformers returns something else.
        result = tokenizer.apply_chat_template(text, tokenize=True, return_dict=True, **template)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses its messages: {error}") from None
    return list(result["input_ids"])


def completed(tokenizer: Any, texts: Texts) -> tuple[list[int], list[list[int]]]:
    """Return the ids of the prompt, and those of each completion after it.

    A completion begins where the tokens of prompt + completion depart from those of the prompt,
    since tokens may merge across the boundary. A text ends in the end-of-text token, if the
    tokenizer has one; a conversation ends as its template has it.
    """
    prompt: Any = texts.prompt
    wholes = whole_ids(tokenizer, texts)
    if prompt is None:
        return [], wholes
    more = {} if isinstance(prompt, str) else {"add_generation_prompt": True, **texts.template}
    ids = token_ids(tokenizer, prompt, **more)
    common = min(sum(1 for _ in takewhile(lambda x: x[0] == x[1], zip(ids, whole, strict=False)))
                 for whole in wholes)  # fmt: skip
    return ids[:common], [whole[common:] for whole in wholes]


def whole_ids(tokenizer: Any, texts: Texts) -> list[list[int]]:
    """Return the ids of prompt + completion, of each completion."""
    end = tokenizer.eos_token or ""
    wholes = []
    for completion in texts.completions:
        if isinstance(completion, str):
            ended = completion if completion.endswith(end) else completion + end
            wholes.append(token_ids(tokenizer, f"{texts.prompt or ''}{ended}"))
        else:
            turns = [*(texts.prompt or ()), *completion]
            wholes.append(token_ids(tokenizer, turns, **texts.template))
    return wholes


def step_ids(tokenizer: Any, texts: Texts, separator: str) -> tuple[list[int], list[int]]:
    """Return the ids of [start] prompt step 1 [separator] step 2 [separator] ..., and their labels.

    The label of a step stands at its last token, that of the separator; each piece is tokenized by
    itself. The rule of TRL's PRM trainer, which version 1.16 no longer has.

    Raises:
        ValueError: a step without a token.
    """

    def pieces(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    start = tokenizer.bos_token_id
    ids = ([] if start is None else [start]) + pieces(str(texts.prompt))
    labels, end = [IGNORED] * len(ids), pieces(separator)
    for step, label in zip(texts.completions, texts.labels, strict=True):
        tokens = pieces(str(step)) + end
        if not tokens:
            raise ValueError(f"'completions' has a step without tokens, {step!r:.60}")
        ids += tokens
        labels += [IGNORED] * (len(tokens) - 1) + [label]
    return ids, labels


def cut(
    ids: list[int], labels: list[int], max_length: int | None, truncation: str
) -> tuple[list[int], list[int]]:
    """Return the first or the last tokens of a sequence that is too long."""
    if max_length is None or len(ids) <= max_length:
        return ids, labels
    part = slice(None, max_length) if truncation == "keep_start" else slice(-max_length, None)
    return ids[part], labels[part]
