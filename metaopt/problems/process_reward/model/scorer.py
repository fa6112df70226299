"""Process reward models on any transformers model: a score for each step of a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from metaopt.data.folder import model_source
from metaopt.engine.functional import functional_call
from metaopt.engine.ranges import check_choices
from metaopt.nn.configuration import Source, configuration, is_visual
from metaopt.nn.frozen_module import move, without_trained
from metaopt.nn.precision import PRECISIONS, say_if_slow
from metaopt.nn.word_tokenizer import tokenizer_of
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.model.backbone import Backbone, StepReader
from metaopt.problems.process_reward.model.images import Vision
from metaopt.problems.process_reward.model.steps import Steps, check_steps
from metaopt.problems.process_reward.model.tokens import TokenLayout, default_separator, padded

HEADS = ("hidden", "vocabulary")
LAYOUTS = ("chain", "prefix")


@dataclass(eq=False, repr=False)
class TransformerScorer:
    """z = w . h + b of each step, h the hidden state where the step ends.

    One forward pass scores all steps of a chain: there each of them is read at the separator after
    it, and a causal model scores it as it would without the steps that follow. An encoder would see
    them; it needs layout="prefix".

    All weights are trained, or with LoRA the adapters and the head. What is frozen stays in the
    scorer: it is neither among the tensors that `init` returns nor in a checkpoint of them. There
    are not buffers.

    Args:
        train: training chains, of which an untrained model without a tokenizer takes the words.
        source: a configuration of transformers (random weights) as a dict with its model_type or
            as an object, a local folder, an id of the hub, or a name that `metaopt-fetch` knows;
            weights are read from safetensors only, and code of the hub is never run.
        tokenizer: folder, id of the hub or such a name (with an image processor too, where the
            source is a configuration of a model that reads images), or a tokenizer; `None` for
            that of the source, and for the words of `train` where the source is a configuration.
        head: hidden, or vocabulary: a linear map of the language model's logits of all words at
            that place, in float32 (what the release of DreamPRM does).
        layout: chain, of causal models; or prefix: a forward pass for each prefix of each chain, S
            times the cost.
        separator: see `TokenLayout`; `None` for a blank line ([STEP] with words of `train`; the
            tokenizer's own separator, such as [SEP], where its vocabulary has no blank line).
        max_length: see `TokenLayout`.
        precision: float32; master (trained weights in float32, frozen ones in bfloat16, autocast to
            it); official (weights in bfloat16 and autocast, the head in float32; an update below
            0.2 % of a weight is lost, and estimators that take finite differences refuse it).
        attention: eager, which can be differentiated twice, or sdpa.
        lora: arguments of `peft.LoraConfig`, such as {r: 16, lora_alpha: 32,
            target_modules: [q_proj, v_proj]}; `None` to train everything.
        seed: draws what is frozen and not pretrained.
        longest: see `Vision`; models of the Qwen2-VL family read a question's images before it.
        remat: pattern of the names of layers of the source that keep their inputs alone and are
            computed again for derivatives, such as layers\\.\\d+$; see `metaopt.remat_blocks`. A
            gradient takes a third more time, an unrolled step up to twice as much.

    Raises:
        ValueError: one of these is not met; says which and what is legal. An encoder with
            layout="chain" is refused when the model is made.
        ImportError: lora without peft.
        OSError: there is no such folder or model.

    Reference: Cao et al., DreamPRM, NeurIPS 2025.
    """

    train: InitVar[Sequence[Chain]]
    source: Source
    tokenizer: InitVar[str | Path | PreTrainedTokenizerBase | None] = None
    head: str = "hidden"
    layout: str = "chain"
    separator: str | None = None
    max_length: int | None = None
    precision: str = "float32"
    attention: str = "eager"
    lora: Mapping[str, Any] | None = None
    seed: int = 0
    longest: int = 512
    remat: str | None = None

    def __post_init__(
        self,
        train: Sequence[Chain],
        tokenizer: str | Path | PreTrainedTokenizerBase | None,
    ) -> None:
        check_choices(self, head=HEADS, layout=LAYOUTS, precision=tuple(PRECISIONS))
        self.source, tokenizer = model_source(self.source), model_source(tokenizer)
        texts = (text for chain in train for text in (chain.prompt, *chain.steps))
        words = tokenizer_of(self.source, tokenizer, texts)
        self.separator = default_separator(words, self.separator)
        self.tokens = TokenLayout(words, self.separator, self.max_length)
        self.config: PretrainedConfig = configuration(self.source, words)
        dtype, self.compute_dtype = PRECISIONS[self.precision]
        self.backbone = Backbone(
            self.source, self.config, self.head, dtype, self.compute_dtype, self.attention,
            self.lora, self.seed, self.remat,
        )  # fmt: skip
        self._vision: Vision | None = None
        if is_visual(self.config):
            places = (place for place in (self.source, tokenizer) if isinstance(place, (str, Path)))
            self._vision = Vision(self.config, next(places, None), self.longest)
        self._device = torch.device("cpu")

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that say how steps are read, by name."""
        rest = ("source", "remat")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in rest}

    def encode(self, chains: Sequence[Chain]) -> Steps:
        """Return chains as token ids; see `TokenLayout.encode`.

        Raises:
            ValueError: chains that cannot be scored, or images for a model that reads text only.
            FileNotFoundError: an image is not there.
        """
        check_steps(chains)
        if self._vision is not None:
            images, pictures, tokens = self._vision.images(chains)
            width = max(map(len, pictures))
            steps = self.tokens.encode(chains, tokens)
            return replace(steps, images=images, pictures=padded(pictures, width, -1))
        with_images = sum(bool(chain.images) for chain in chains)
        if with_images:
            raise ValueError(
                f"{with_images} of {len(chains)} chains have images; this model reads text only."
            )
        return self.tokens.encode(chains)

    def init(self, generator: Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what is trained, by name, and no buffers."""
        module = self._build(int(torch.randint(2**62, (), generator=generator)))
        params = {k: v.detach() for k, v in module.named_parameters() if v.requires_grad}
        if "reader" not in vars(self):
            self.reader = without_trained(module)
        return params, {}

    def save_text(self, folder: Path) -> None:
        """Write the tokenizer and, if there is one, the image processor."""
        self.tokens.tokenizer.save_pretrained(folder)
        if self._vision is not None:
            self._vision.processor.save_pretrained(folder)

    @cached_property
    def reader(self) -> StepReader:
        """The model, which holds what is frozen; `functional_call` passes what is trained."""
        return without_trained(self._build(self.seed))

    def _build(self, seed: int) -> StepReader:
        module = self.backbone.build(seed)
        if self.layout == "chain" and not module.causal:
            raise ValueError(
                f"layout=chain needs a causal model: {type(module.backbone).__name__} is an "
                f"encoder, which sees the steps after the one it scores. Take layout=prefix."
            )
        return module

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
        say_if_slow(self.compute_dtype, lengths.device.type, "precision=float32")
        module = self.reader
        if module.training != train:
            module.train(train)
        if self._device != lengths.device:
            move(module, lengths.device)
            self._device = lengths.device
        batch: Any = (inputs, lengths, ends)
        logits: Tensor = functional_call(module, dict(tensors), (batch,))
        return logits
