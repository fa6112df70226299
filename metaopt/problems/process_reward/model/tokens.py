"""Chains as token ids, and where in them each step is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from metaopt.engine.ranges import check_ranges
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.model.steps import Steps, check_steps


class TokenLayout:
    """[start] prompt [sep] step 1 [sep] step 2 [sep] ..., each step read at its separator's end.

    Prompt and steps are tokenised one by one, so the tokens of a prefix are a prefix of the tokens:
    what a causal model says of a step does not depend on the steps after it.

    Args:
        tokenizer: any; it is left as it is.
        separator: text between prompt and steps and after each step; "" to read a step at its own
            last token.
        max_length: most tokens of a chain, or `None`. The prompt loses its beginning first; steps
            that still do not fit are left out and counted.

    Raises:
        ValueError: a separator without tokens, or max_length below 1.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        separator: str = "\n\n",
        max_length: int | None = None,
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.separator = self.ids([separator])[0] if separator else []
        if separator and not self.separator:
            raise ValueError(
                f"separator={separator!r} has no token in this vocabulary: give separator= a text "
                "that the tokenizer knows, such as a full stop, or '' to read each step at its own "
                "last token."
            )
        check_ranges(self, "max_length >= 1 or null")
        begins = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
        self.start = [token for token in tokenizer("")["input_ids"] if token in begins]

    def encode(self, chains: Sequence[Chain], images: Sequence[Sequence[int]] = ()) -> Steps:
        """Return chains as token ids, those of `images` (one list per chain) before the prompt.

        Raises:
            ValueError: no chain, one without steps, a step without tokens (without a separator to
                be read at), or a chain whose first step alone is longer than max_length.
        """
        check_steps(chains)
        prompts = self.ids([chain.prompt for chain in chains])
        texts = iter(self.ids([step for chain in chains for step in chain.steps]))
        rows, ends, cut = [], [], []
        for i, (chain, prompt) in enumerate(zip(chains, prompts, strict=True)):
            steps = [next(texts) + self.separator for _ in chain.steps]
            if not all(steps):
                raise ValueError(
                    f"chain {i} has a step without tokens, {chain.steps!r}; drop it, or give a "
                    "separator to read it at."
                )
            before = self.start + list(images[i] if images else ())
            row, at = self._row(i, before, prompt + self.separator, steps)
            rows.append(row)
            ends.append(at)
            cut.append(len(steps) - len(at))
        width = max(len(chain.steps) for chain in chains)
        counts = torch.tensor([len(at) for at in ends])
        return Steps(
            mask=torch.arange(width) < counts[:, None],
            ends=padded(ends, width, 0),
            cut=torch.tensor(cut),
            ids=padded(rows, max(map(len, rows)), self.pad),
            lengths=torch.tensor([len(row) for row in rows]),
        )

    @property
    def pad(self) -> int:
        """Id of what fills rows; no score depends on it."""
        return int(self.tokenizer.pad_token_id or 0)

    def prefixes(self, steps: Steps) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids (P, T), lengths (P,) and chains (P,) of a batch with one row per prefix.

        Rows are in the order of `mask.nonzero()`.
        """
        assert steps.ids is not None
        chain, step = steps.mask.nonzero(as_tuple=True)
        lengths = steps.ends[chain, step] + 1
        places = torch.arange(int(lengths.max()), device=lengths.device)
        ids = steps.ids[chain, : len(places)].masked_fill(places >= lengths[:, None], self.pad)
        return ids, lengths, chain

    def _row(
        self, i: int, before: list[int], prompt: list[int], steps: list[list[int]]
    ) -> tuple[list[int], list[int]]:
        if self.max_length is not None:
            room = self.max_length - len(before)
            fits = [total <= room for total in accumulate(map(len, steps))]
            if not fits[0]:
                raise ValueError(
                    f"the first step of chain {i} has {len(steps[0])} tokens, of which "
                    f"{max(room, 0)} fit into max_length={self.max_length}."
                )
            steps = steps[: sum(fits)]
            keep = room - sum(map(len, steps))
            prompt = prompt[max(len(prompt) - keep, 0) :]
        row = before + prompt
        lengths = list(accumulate(map(len, steps)))
        return row + [t for step in steps for t in step], [len(row) + n - 1 for n in lengths]

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text by itself, without special tokens around it."""
        distinct = list(dict.fromkeys(texts))
        rows = self.tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"]
        known = {text: list(row) for text, row in zip(distinct, rows, strict=True)}
        return [known[text] for text in texts]


def default_separator(tokenizer: PreTrainedTokenizerBase, separator: str | None) -> str:
    """Return what separates steps: `separator` unless it is `None`, and else what is known.

    [STEP] where that is a special token, a blank line where the vocabulary has one, and else the
    tokenizer's own separator, such as BERT's [SEP].
    """
    if separator is not None:
        return separator
    if "[STEP]" in tokenizer.all_special_tokens:
        return "[STEP]"
    blank = "\n\n"
    known = tokenizer(blank, add_special_tokens=False)["input_ids"]
    return blank if known else str(tokenizer.sep_token or blank)


def padded(lists: list[list[int]], width: int, value: int) -> Tensor:
    """Return lists of integers as the rows of a tensor, filled up on the right."""
    filled = [items + [value] * (width - len(items)) for items in lists]
    return torch.tensor(filled, dtype=torch.long)  # of no items it would be of floats
