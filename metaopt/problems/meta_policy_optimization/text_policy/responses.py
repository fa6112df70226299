"""Responses of a causal language model: drawn by key, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold, generator
from metaopt.llm import Parameters
from metaopt.llm.decoding import Draw
from metaopt.nn.shared_prefix import places
from metaopt.nn.transformers_model import TransformersModel


class Responses(NamedTuple):
    """Tokens of prompts, padded on the left, with responses, padded on the right.

    Args:
        ids: prompt and response, (B, W + T).
        present: 1 for a token of either, 0 for padding, (B, W + T).
        mask: 1 for a token of the response, its end included, (B, T).
        texts: the responses.
    """

    ids: Tensor
    present: Tensor
    mask: Tensor
    texts: list[str]


class Responder:
    """pi(response | query) of a model of transformers, tempered, for `max_tokens` tokens.

    A query is a user's message in the tokenizer's chat template; without one the response follows
    an empty line.

    Args:
        model: whose weights are given in each call.
        max_tokens: longest response, >= 1.
        temperature: > 0, of samples and of log-probabilities.
    """

    def __init__(self, model: TransformersModel, max_tokens: int, temperature: float) -> None:
        self.model, self.max_tokens, self.temperature = model, max_tokens, temperature

    def sample(self, weights: Tree, queries: Sequence[str], key: int) -> Responses:
        """Return a response to each query: the same for the same weights, queries and key.

        Cost: `max_tokens` forward passes of one token for each query, in one batch.
        """
        ids, present = self._padded([self._prompt(query) for query in queries])
        width = ids.shape[1]
        self.model.check_room(width + self.max_tokens)
        uniform = torch.stack([self._uniform(fold(key, i)) for i in range(len(queries))])
        parameters = [Parameters(self.temperature, self.max_tokens)] * len(queries)
        both = self.model.generate(
            weights,
            {"input_ids": ids, "attention_mask": present},
            generation_config=GenerationConfig(
                max_new_tokens=self.max_tokens, do_sample=False, use_cache=True,
                eos_token_id=self.model.ends or None, pad_token_id=self.model.pad,
            ),
            past_key_values=self.model.prefix(weights, ids[:, :-1], present[:, :-1]),
            logits_processor=LogitsProcessorList(
                [Draw(parameters, uniform.to(ids.device), width)]
            ),
        )  # fmt: skip
        return self._responses(both, present, width)

    def written(self, pairs: Sequence[tuple[str, str]]) -> Responses:
        """Return given responses to queries, each with an end, cut at `max_tokens`."""
        prompts, present = self._padded([self._prompt(query) for query, _ in pairs])
        tails = [self._ids(text, False)[: self.max_tokens - 1] for _, text in pairs]
        end, pad = self.model.ends[:1], self.model.pad
        longest = max(map(len, tails)) + len(end)
        rows = [[*tail, *end, *[pad] * (longest - len(tail) - len(end))] for tail in tails]
        both = torch.cat([prompts, torch.tensor(rows, device=prompts.device)], 1)
        return self._responses(both, present, prompts.shape[1])

    def log_p(self, weights: Tree, responses: Responses) -> Tensor:
        """Return log pi of each token of the responses, (B, T); of padding, some number."""
        count = responses.mask.shape[1]
        # What is read: the last token's logits are of a token that is not there.
        ids, present = responses.ids[:, :-1], responses.present[:, :-1]
        inputs: dict[str, Any] = {
            "input_ids": ids, "attention_mask": present, "position_ids": places(present),
            "logits_to_keep": count,
        }  # fmt: skip
        before = ids.shape[1] - count  # all of the prompt but its last token
        prefix = self.model.prefix(weights, ids[:, :before], present[:, :before])
        if prefix is not None:
            inputs["past_key_values"] = prefix
            inputs |= {name: inputs[name][:, before:] for name in ("input_ids", "position_ids")}
        log_p = (self.model.logits(weights, inputs, False) / self.temperature).log_softmax(-1)
        return log_p.gather(-1, responses.ids[:, -count:, None])[..., 0]

    def _responses(self, both: Tensor, present: Tensor, width: int) -> Responses:
        tail = both[:, width:]
        ends = torch.isin(tail, tail.new_tensor(self.model.ends))
        mask = (ends.cumsum(1) - ends.long() == 0).long()  # up to and with the first end
        texts = self.model.tokenizer.batch_decode(
            [row[kept.bool()].tolist() for row, kept in zip(tail, mask, strict=True)],
            skip_special_tokens=True, clean_up_tokenization_spaces=False,
        )  # fmt: skip
        return Responses(both, torch.cat([present, mask], 1), mask, texts)

    def _prompt(self, query: str) -> list[int]:
        tokenizer = self.model.tokenizer
        if tokenizer.chat_template is None:
            return self._ids(f"{query}\n\n", True)
        messages = [{"role": "user", "content": query}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._ids(text, False)

    def _ids(self, text: str, special: bool) -> list[int]:
        ids: Any = self.model.tokenizer(text, add_special_tokens=special)["input_ids"]
        return list(ids)

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        width, pad = max(map(len, rows)), self.model.pad
        ids = [[pad] * (width - len(row)) + row for row in rows]
        present = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(present, device=device)

    def _uniform(self, key: int) -> Tensor:
        return torch.rand(self.max_tokens, generator=generator(key), dtype=torch.float64)
