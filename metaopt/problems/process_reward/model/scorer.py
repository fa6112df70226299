"""Process reward models on any transformers model: a score for each step of a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from metaopt.nn.network import Functional
from metaopt.problems.process_reward.model.backbone import (
    Backbone,
    StepReader,
    is_visual,
    tokenizer_of,
)
from metaopt.problems.process_reward.model.images import Vision
from metaopt.problems.process_reward.model.steps import (
    ScorerFactory,
    Solution,
    Steps,
    StepScorer,
    check_steps,
    scores,
)
from metaopt.problems.process_reward.model.tokens import TokenLayout

__all__ = ["ScorerFactory", "Solution", "StepScorer", "Steps", "TransformerScorer", "scores"]

HEADS = ("hidden", "vocabulary")
LAYOUTS = ("chain", "prefix")
PRECISIONS = {
    "float32": (torch.float32, None),
    "master": (torch.float32, torch.bfloat16),
    "official": (torch.bfloat16, torch.bfloat16),
}


class TransformerScorer:
    """z = w . h + b of each step, h the hidden state where the step ends.

    One forward pass scores all steps of a chain: there each of them is read at the separator after
    it, and with a causal model its score is what it would be without the steps that follow. An
    encoder does see them; give it layout="prefix" where it must not.

    All weights are trained, or with LoRA the adapters and the head. What is frozen stays in the
    scorer: it is neither among the tensors that `init` returns nor in a checkpoint of them. There
    are no buffers.

    Args:
        train: training chains, of which an untrained model without a tokenizer takes the words.
        source: a configuration of transformers (random weights) as a dict with its model_type or
            as an object, a local folder, or an id of the hub; weights are read from safetensors
            only, and code of the hub is never run.
        tokenizer: folder or id of the hub (with an image processor too, where the source is a
            configuration of a model that sees), or a tokenizer; `None` for the source's own, and
            for the words of `train` where the source is a configuration.
        head: hidden, or vocabulary: a linear map of the language model's logits of all words at
            that place, in float32 (what the release of DreamPRM does).
        layout: chain, or prefix: a forward pass for each prefix of each chain, S times the cost.
        separator: see `TokenLayout`; `None` for a blank line ([STEP] with words of `train`).
        max_length, chat: see `TokenLayout`; chat needs layout="prefix".
        precision: float32; master (trained weights in float32, frozen ones in bfloat16, autocast to
            it); official (weights in bfloat16 and autocast, the head in float32; an update below
            0.2 % of a weight is lost).
        attention: eager, which can be differentiated twice, or sdpa.
        lora: arguments of `peft.LoraConfig`, such as {r: 16, lora_alpha: 32,
            target_modules: [q_proj, v_proj]}; `None` to train everything.
        seed: draws what is frozen and not pretrained.
        longest: see `Vision`; models of the Qwen2-VL family see a question's images before it.
        checkpointing: keep the layers' inputs alone and compute each layer again in the backward
            pass, for a third more time; see
            `metaopt.problems.process_reward.model.checkpointed.checkpoint_layers`.

    Raises:
        ValueError: one of these is not met; says which and what is legal.
        ImportError: lora without peft.
        OSError: there is no such folder or model.

    Reference: Cao et al., DreamPRM, NeurIPS 2025.
    """

    def __init__(
        self,
        train: Sequence[Solution],
        source: str | Path | Mapping[str, Any] | PretrainedConfig,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        head: str = "hidden",
        layout: str = "chain",
        separator: str | None = None,
        max_length: int | None = None,
        chat: bool = False,
        precision: str = "float32",
        attention: str = "eager",
        lora: Mapping[str, Any] | None = None,
        seed: int = 0,
        longest: int = 512,
        checkpointing: bool = False,
    ) -> None:
        for name, value, legal in (
            ("head", head, HEADS),
            ("layout", layout, LAYOUTS),
            ("precision", precision, tuple(PRECISIONS)),
        ):
            if value not in legal:
                raise ValueError(f"{name} must be one of {', '.join(legal)}; got {value!r}.")
        if chat and layout != "prefix":
            raise ValueError('chat=true needs layout="prefix": a chain has no place for its tail.')
        words = tokenizer_of(source, tokenizer, train)
        if separator is None:
            separator = "[STEP]" if "[STEP]" in words.all_special_tokens else "\n\n"
        self.source, self.layout = source, layout
        self.settings: dict[str, Any] = {
            "head": head,
            "layout": layout,
            "separator": separator,
            "max_length": max_length,
            "chat": chat,
            "precision": precision,
            "attention": attention,
            "lora": None if lora is None else dict(lora),
            "seed": seed,
            "longest": longest,
        }
        self.tokens = TokenLayout(words, separator, max_length, chat)
        dtype, autocast = PRECISIONS[precision]
        self.compute_dtype = autocast
        self._backbone = Backbone(
            source, words, head, dtype, autocast, attention, lora, seed, checkpointing
        )
        self._vision: Vision | None = None
        if is_visual(self.config):
            self._vision = Vision(self.config, _processor_folder(source, tokenizer), longest)
        self._read: Functional | None = None
        self._device = torch.device("cpu")

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration."""
        return self._backbone.config

    def encode(self, chains: Sequence[Solution]) -> Steps:
        """Return chains as token ids; see `TokenLayout.encode`.

        Raises:
            ValueError: chains that cannot be scored, or images for a model without eyes.
            FileNotFoundError: an image is not there.
        """
        check_steps(chains)
        if self._vision is not None:
            images, pictures, tokens = self._vision.images(chains)
            width = max(map(len, pictures))
            padded = [row + [-1] * (width - len(row)) for row in pictures]
            steps = self.tokens.encode(chains, tokens)
            return replace(
                steps,
                images=images,
                pictures=torch.tensor(padded, dtype=torch.long).reshape(len(chains), width),
            )
        with_images = sum(bool(chain.images) for chain in chains)
        if with_images:
            raise ValueError(
                f"{with_images} of {len(chains)} chains have images; this model reads text only."
            )
        return self.tokens.encode(chains)

    def init(self, generator: Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what is trained, by name, and no buffers."""
        module = self._backbone.build(int(torch.randint(2**62, (), generator=generator)))
        params = {k: v.detach() for k, v in module.named_parameters() if v.requires_grad}
        if self._read is None:
            self._read = _functional(module)
        return params, {}

    def save_text(self, folder: Path) -> None:
        """Write the tokenizer and, if there is one, the image processor."""
        self.tokens.tokenizer.save_pretrained(folder)
        if self._vision is not None:
            self._vision.processor.save_pretrained(folder)

    def merged(self, tensors: Mapping[str, Tensor]) -> StepReader:
        """Return a module on the CPU that holds the model alone: no adapters, a head on h."""
        return self._backbone.merged(tensors)

    def frozen(self) -> dict[str, Tensor]:
        """Return the parameters that are not trained, by name; they belong to the scorer."""
        named = self._reader().module.named_parameters()
        return {k: v.detach() for k, v in named if v.device.type != "meta"}

    def logits(self, tensors: Mapping[str, Tensor], steps: Steps, train: bool) -> Tensor:
        """Return the log-odds (B, S) of the steps, in the head's precision."""
        assert steps.ids is not None
        assert steps.lengths is not None
        if self.layout == "chain":
            inputs = self._inputs(steps.ids, steps, slice(None))
            return self._call(tensors, inputs, steps.lengths, steps.ends, train)
        ids, lengths, chain = self.tokens.prefixes(steps)
        inputs = self._inputs(ids, steps, chain)
        logits = self._call(tensors, inputs, lengths, lengths[:, None] - 1, train)
        empty = torch.zeros(steps.mask.shape, dtype=logits.dtype, device=logits.device)
        return empty.masked_scatter(steps.mask, logits)

    def _inputs(self, ids: Tensor, steps: Steps, rows: Tensor | slice) -> dict[str, Tensor]:
        if self._vision is None or steps.pictures is None:
            return {"input_ids": ids}
        return {"input_ids": ids, **self._vision.inputs(ids, steps.images, steps.pictures[rows])}

    def _call(
        self,
        tensors: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        lengths: Tensor,
        ends: Tensor,
        train: bool,
    ) -> Tensor:
        read = self._reader()
        module = read.module
        if module.training != train:
            module.train(train)
        if self._device != lengths.device:
            _move(module, lengths.device)
            self._device = lengths.device
        batch: Any = (inputs, lengths, ends)
        return read(tensors, batch)

    def _reader(self) -> Functional:
        if self._read is None:
            self._read = _functional(self._backbone.build(self._backbone.seed))
        return self._read


def _processor_folder(*places: object) -> str | Path | None:
    """Return the first of the places that is a folder or an id of the hub."""
    return next((place for place in places if isinstance(place, (str, Path))), None)


def _move(module: nn.Module, device: torch.device) -> None:
    """Move the module.s own tensors to a device."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type != "meta" and tensor.device != device:
            tensor.data = tensor.data.to(device)


def _functional(module: StepReader) -> Functional:
    """Return the module as a function of what it trains, of which it keeps no copy."""
    trained = {k for k, v in module.named_parameters() if v.requires_grad}
    read = Functional(module)
    read.places = [
        (store, key, name, tensor.detach().to("meta"))
        for store, key, name, tensor in read.places
        if name in trained
    ]
    for store, key, _, tensor in read.places:
        store[key] = tensor
    return read
