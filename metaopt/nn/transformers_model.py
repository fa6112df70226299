"""A causal or classification model of transformers, called with the tensors that are trained."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from metaopt.data.folder import model_source
from metaopt.data.origin import origin
from metaopt.engine.functional import functional_call
from metaopt.engine.gradient_problem import split_module
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_choices
from metaopt.engine.remat_blocks import remat_blocks
from metaopt.nn.configuration import Source, configuration
from metaopt.nn.export import linear_head
from metaopt.nn.frozen_module import fill, move, without_trained
from metaopt.nn.lora import add_adapters, merge_adapters
from metaopt.nn.positions import positions
from metaopt.nn.precision import PRECISIONS, say_if_slow
from metaopt.nn.pretrained import progress_bars
from metaopt.nn.shared_prefix import keeps_prefixes, places, prefix_runs, repeated
from metaopt.nn.word_tokenizer import tokenizer_of

Trains = Literal["all", "head", "biases"]
AUTO: dict[str, tuple[Any, dict[str, Any]]] = {
    "causal": (AutoModelForCausalLM, {}),
    "sequence": (AutoModelForSequenceClassification, {"num_labels": 1}),
    "token": (AutoModelForTokenClassification, {"num_labels": 2}),
}
"""By kind of model, the class of transformers that makes it and its outputs."""

CHAT = "{% for m in messages %}{{ m.role }} : {{ m.content }} {{ eos_token }} {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"  # noqa: E501
"""Chat template of the tokenizer of words."""


class TransformersModel:
    """logits(theta, ids), theta all weights, or adapters and a classifier's head, or the head.

    What is not trained is held once, in this object: it is neither among the tensors that `init`
    returns nor in a checkpoint of them. The weights at the start are the same in every `init`:
    those of the source, and new ones as `seed` draws them.

    Args:
        kind: causal, sequence (a classifier of sequences with one output) or token (of tokens, two
            classes).
        texts: read by the tokenizer of words where neither source nor `tokenizer` names another.
        source: a configuration of transformers (random weights) as a dict with its model_type or as
            an object, a local folder, an id of the hub, or a name that `metaopt-fetch` knows.
        tokenizer: a tokenizer, its folder or its id; `None` for the source's, and for one token for
            each word of the training rows where the source is a configuration.
        trains: all; head, the output layer alone; or biases, those of all layers, and the head.
        lora: arguments of `peft.LoraConfig`; `None` for no adapters.
        precision: float32, master (trained weights in float32, frozen ones in bfloat16, autocast to
            it) or official (all in bfloat16); see `metaopt.nn.precision`.
        attention: eager or sdpa. sdpa is as fast as its kernels allow where a gradient is
            differentiated once, and falls back to torch's plain one where it is twice.
        remat: pattern of layers that are computed again for derivatives; see
            `metaopt.remat_blocks`.
        seed: of new weights.
        device: where the model lives.

    Attributes:
        compute_dtype: of the computation; `None` for that of the weights.

    Raises:
        ValueError: options that exclude each other; a tokenizer with more tokens than the model has
            embeddings, or none to pad with; a causal model whose source lacks weights.
        ImportError: lora without peft.
        OSError: there is no such folder or model.
    """

    def __init__(
        self,
        kind: str,
        texts: Iterable[str],
        source: Source,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        trains: Trains = "all",
        lora: Mapping[str, Any] | None = None,
        precision: str = "float32",
        attention: str = "eager",
        remat: str | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.kind, self.trains, self.precision = kind, trains, precision
        check_choices(
            self, kind=tuple(AUTO), trains=("all", "head", "biases"), precision=tuple(PRECISIONS)
        )
        if trains != "all" and lora is not None:
            raise ValueError(
                f"trains={trains} leaves nothing to adapt; set lora=null or trains=all."
            )
        source = model_source(source)
        self.origin = origin(source)
        self.tokenizer: Any = _completed(source, model_source(tokenizer), texts)
        self.pad = _pad(self.tokenizer)
        dtype, self.compute_dtype = PRECISIONS[precision]
        frozen = lora is not None or trains != "all"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._load(
                source, attention, (self.compute_dtype or dtype) if frozen else dtype
            )
            self._freeze(module, lora, dtype)
        _check_vocabulary(self.tokenizer, module)
        self._room = positions(module)
        # A block that is computed again would write its keys into the prefix's twice.
        self._keeps_prefixes = kind == "causal" and remat is None and keeps_prefixes(module)
        if remat is not None:
            remat_blocks(module, remat)
        self.has_adapters, self.device = lora is not None, torch.device(device)
        self._start = split_module(module)[0]
        self._module = without_trained(module)
        move(self._module, self.device)

    def init(self) -> Tree:
        """Return what is trained, as it is before training."""
        return {k: v.to(self.device, copy=True) for k, v in self._start.items()}

    def logits(self, tensors: Tree, inputs: Mapping[str, Tensor], train: bool) -> Tensor:
        """Return the logits of token ids and their mask, (rows, ...).

        Args:
            tensors: what is trained, by name.
            inputs: input_ids and attention_mask, (rows, T).
            train: whether dropout is on.
        """
        say_if_slow(self.compute_dtype, self.device.type, "precision=float32")
        module = self._module
        if module.training != train:
            module.train(train)
        own = {name: tensors[name] for name in self._start}
        with torch.autocast(
            self.device.type, self.compute_dtype, enabled=self.compute_dtype is not None
        ):
            logits: Tensor = functional_call(module, own, (), {**inputs, "use_cache": False}).logits
        return logits

    def prefix(self, tensors: Tree, ids: Tensor, present: Tensor) -> Any:
        """Return the keys and values of prefixes, of which each run of equal rows is read once.

        They are the `past_key_values` of one call of `logits` or `generate` on what follows, which
        adds to them; derivatives with respect to `tensors` go through them. `None` where nothing is
        gained, or the model does not go on from a prefix: with sliding windows, recurrent layers or
        blocks that are computed again.

        Args:
            tensors: what is trained, by name.
            ids: token ids (B, W), padded on the left.
            present: 1 for a token, 0 for padding, (B, W).
        """
        if not self._keeps_prefixes or not ids.shape[1]:
            return None
        first, counts = prefix_runs(ids, present)
        if len(counts) == len(ids):
            return None
        cache = DynamicCache(config=self._module.config)
        inputs: dict[str, Any] = {
            "input_ids": ids[first], "attention_mask": present[first],
            "position_ids": places(present[first]), "past_key_values": cache,
            "logits_to_keep": 1,
        }  # fmt: skip
        self.logits(tensors, inputs, False)
        return repeated(cache, counts)

    def frozen(self) -> Iterator[tuple[str, Tensor]]:
        """Return names and values of the weights that are not trained."""
        for name, value in self._module.named_parameters():
            if value.device.type != "meta":
                yield name, value

    @torch.no_grad()
    def generate(self, tensors: Tree, inputs: Mapping[str, Tensor], **options: Any) -> Tensor:
        """Return the token ids that `model.generate(**inputs, **options)` of transformers returns.

        Args:
            tensors: what is trained, by name.
            inputs: input_ids and attention_mask, (rows, T), padded on the left.
            options: of `generate`; nothing of the model's own generation config counts.
        """
        self._module.train(False)
        own = {f"model.{name}": tensors[name] for name in self._start}
        with torch.autocast(
            self.device.type, self.compute_dtype, enabled=self.compute_dtype is not None
        ):
            ids: Tensor = functional_call(_Generating(self._module), own, (), {**inputs, **options})
        return ids

    @property
    def ends(self) -> list[int]:
        """The ids of tokens that end a text."""
        ids = self._module.generation_config.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return sorted({*ids, self.tokenizer.eos_token_id} - {None})

    def check_room(self, tokens: int) -> None:
        """Raise a `ValueError` for a row with more tokens than the model has learned positions."""
        if self._room is not None and tokens > self._room:
            raise ValueError(
                f"is longer than the {self._room} positions that the model has learned; set "
                f"max_length={self._room} or less; got {tokens} tokens"
            )

    @torch.no_grad()
    def merged(self, tensors: Tree) -> Any:
        """Return a model of transformers with these weights, adapters multiplied out.

        In float32 where there are adapters, and else in the precision of the weights.
        """
        model: Any = copy.deepcopy(self._module)
        fill(model, {name: tensors[name] for name in self._start})
        if self.has_adapters:
            merge_adapters(model.float())
        return model.cpu().eval()

    def _load(self, source: Any, attention: str, dtype: torch.dtype) -> Any:
        auto, outputs = AUTO[self.kind]
        how = {"attn_implementation": attention, "dtype": dtype, "trust_remote_code": False}
        if not isinstance(source, (str, Path)):
            config = copy.deepcopy(configuration(source, self.tokenizer))
            config.update(outputs)
            model = auto.from_config(config, **how)
        else:
            configuration(source, self.tokenizer)
            with progress_bars():
                model, info = auto.from_pretrained(
                    source, use_safetensors=True, output_loading_info=True, **how, **outputs
                )
            missing = sorted(info["missing_keys"])
            if missing and self.kind == "causal":
                raise ValueError(
                    f"{source} has no weights {', '.join(missing[:10])} of {type(model).__name__}; "
                    f"name a language model."
                )
        text = model.config.get_text_config()
        text.use_cache, text.pad_token_id = False, self.pad
        model.config.pad_token_id = self.pad
        return model

    def _freeze(self, model: Any, lora: Mapping[str, Any] | None, dtype: torch.dtype) -> None:
        """Leave trainable what is trained, in its precision."""
        head = model.get_output_embeddings() if self.kind == "causal" else linear_head(model)
        if lora is not None:
            add_adapters(model, lora)
        elif self.trains != "all":
            model.requires_grad_(False)
            if head is None:
                raise ValueError(
                    f"trains={self.trains}: {type(model).__name__} has no single linear output "
                    f"layer; use trains=all, or lora."
                )
            inputs = model.get_input_embeddings()
            if self.kind == "causal" and head.weight is inputs.weight:
                raise ValueError(
                    f"trains={self.trains}: the output layer of {type(model).__name__} is tied to "
                    f"its embeddings, which would be trained with it; use trains=all, or lora."
                )
            for name, value in model.named_parameters():
                if self.trains == "biases" and name.endswith("bias"):
                    value.requires_grad_(True)
                    value.data = value.data.to(dtype)
        else:
            return
        if head is not None and (self.trains != "all" or self.kind != "causal"):
            head.requires_grad_(True)  # a classifier's head is new, and adapters leave it out
            for value in head.parameters():
                value.data = value.data.to(dtype)


class _Generating(nn.Module):
    """A model whose call is `generate`, for `functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **options: Any) -> Any:
        config, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            return self.model.generate(**options)
        finally:
            self.model.generation_config = config


def _completed(source: Any, tokenizer: Any, texts: Iterable[str]) -> Any:
    """Return the tokenizer; one of words with an end of text and a chat template."""
    words = tokenizer_of(source, tokenizer, texts)
    if tokenizer is None and not isinstance(source, (str, Path)):
        words.add_special_tokens({"eos_token": "[EOS]"})
        words.chat_template = CHAT
    return words


def _pad(tokenizer: Any) -> int:
    """Return the id of what fills batches, as TRL chooses it."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None:
            return int(value)
    raise ValueError(
        f"the tokenizer {type(tokenizer).__name__} has neither a pad token nor an end of text to "
        f"pad with; set tokenizer.pad_token and save it, and give its folder as tokenizer."
    )


def _check_vocabulary(tokenizer: Any, model: PreTrainedModel) -> None:
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(
            f"the tokenizer has ids up to {largest}, and {type(model).__name__} has {rows} "
            f"embeddings; give the tokenizer that belongs to the model."
        )
