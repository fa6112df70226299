"""A causal model of the transformers library as a policy, run in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.files.model_folder import refuse_adapter
from metaopt.problems.process_reward.labelling.rollouts import digest

SEPARATOR = "\n\n"
"""Between the steps of a solution."""


class GenerateCompletion:
    """Completes solutions with `generate`; see
    `metaopt.problems.process_reward.labelling.rollouts.Policy`.

    The model goes on with the solution's first steps: with a chat template they are the start of
    the assistant's turn, without one question and steps are joined by empty lines. A completion
    that did not end by itself is none. Weights are read from safetensors only, and code of the hub
    is never run.

    Args:
        source: a local folder, or an id of the hub.
        temperature: above 0; the released process reward models took 0.3 to 1.
        max_tokens: longest completion, in tokens.
        batch_size: completions that are generated together.
        device: cpu, cuda, cuda:1, ...
        dtype: auto (the checkpoint's own), float32, bfloat16 or float16.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        source: str,
        temperature: float = 0.7,
        max_tokens: int = 1_024,
        batch_size: int = 16,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        self.temperature, self.max_tokens, self.batch_size = temperature, max_tokens, batch_size
        self.device, self.dtype = device, dtype
        check_ranges(self, "temperature > 0", "max_tokens >= 1", "batch_size >= 1")
        check_choices(self, dtype=("auto", "float32", "bfloat16", "float16"))
        from transformers import AutoModelForCausalLM, AutoTokenizer

        refuse_adapter(source)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(source, padding_side="left")
        if self._tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {source} has no end of sequence, so none would end."
            )
        self._tokenizer.pad_token = self._tokenizer.eos_token
        template = self._tokenizer.chat_template
        self.name = (
            f"{source} t={temperature} max_tokens={max_tokens} "
            f"template={None if template is None else digest(str(template))} "
            f"dtype={dtype} batch_size={batch_size}"
        )
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True)
        self._model = model.to(device).eval()
        self._options = {
            "do_sample": True,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "max_new_tokens": max_tokens,
            "pad_token_id": self._tokenizer.pad_token_id,
        }

    def complete(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        draw: np.random.Generator,
    ) -> list[str | None]:
        """Return sampled completions; torch's global generators are left as they were."""
        texts = [self._text(p, x) for p, x in zip(prompts, prefixes, strict=True)]
        completions: list[str | None] = []
        devices = [self.device] if torch.device(self.device).type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            for start in range(0, len(texts), self.batch_size):
                torch.manual_seed(int(draw.integers(2**63)))
                completions += self._generate(texts[start : start + self.batch_size])
        return completions

    def _text(self, prompt: str, prefix: Sequence[str]) -> str:
        begun = "".join(f"{step}{SEPARATOR}" for step in prefix)
        if self._tokenizer.chat_template is None:
            return f"{prompt}{SEPARATOR}{begun}"
        turn = [{"role": "user", "content": prompt}]
        asked: str = self._tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True
        )
        return asked + begun

    def _generate(self, texts: Sequence[str]) -> list[str | None]:
        # A chat template writes its own special tokens.
        special = self._tokenizer.chat_template is None
        tokens = self._tokenizer(
            list(texts), return_tensors="pt", padding=True, add_special_tokens=special,
            return_token_type_ids=False,
        ).to(self.device)  # fmt: skip
        rows = self._model.generate(**tokens, **self._options)[:, tokens["input_ids"].shape[1] :]
        ends = self._model.generation_config.eos_token_id
        stops = {*(ends if isinstance(ends, list) else [ends]), self._tokenizer.eos_token_id}
        completions: list[str | None] = []
        for row in rows.tolist():
            end = next((i for i, token in enumerate(row) if token in stops), None)
            written = None if end is None else self._tokenizer.decode(row[:end])
            completions.append(None if written is None else written.strip())
        return completions
