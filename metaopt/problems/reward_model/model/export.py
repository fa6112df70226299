"""Reward models as folders that transformers and TRL load, and from such folders."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from metaopt.nn.adapters import refuse_adapter
from metaopt.nn.export import (
    check_scores,
    linear_head,
    native,
    new_folder,
    register,
    save_model,
    settings_of,
)
from metaopt.nn.model_card import ModelCard
from metaopt.nn.pretrained import progress_bars
from metaopt.problems.reward_model.model.reward_model import RewardModel, RewardModelConfig
from metaopt.problems.reward_model.model.tokens import encode

register(RewardModelConfig, RewardModel, AutoModelForSequenceClassification)

SHOWN = 10
TOLERANCE = 1e-5  # 80 roundings of float32: another batch shape sums in another order
PROBES = (
    "Yes.",
    "\n\nHuman: What is two and two?\n\nAssistant: Four.",
    "\n\nHuman: Name a river in France, and say why you chose it.\n\nAssistant: The Loire, because "
    "it is the longest one that lies wholly in France.",
)


class Exported(NamedTuple):
    """A folder that was written, read back and compared.

    Args:
        folder: where it is.
        architecture: class that transformers loads it as.
        difference: largest difference of a reward after reading it back.
    """

    folder: Path
    architecture: str
    difference: float


def export(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    card: ModelCard,
    probes: Sequence[str] = PROBES,
    max_length: int | None = None,
) -> Exported:
    """Write a reward model for `AutoModelForSequenceClassification`, `pipeline` and TRL.

    A head on the last token of a causal model is written as transformers' own class (as
    LlamaForSequenceClassification). That class takes for padding whatever has the pad token's id,
    so where the tokenizer pads with a token that texts contain, the copy that is written gets a pad
    token of its own; the pooling last_not_pad means the same as that class and needs none. Every
    other head, and a model whose tokenizer transformers would take for another, is written as a
    `RewardModel` with its source file: it loads with trust_remote_code=True, or after
    `import metaopt.problems.reward_model.model.export`.

    The tokenizer that is written cuts texts at their beginning, as `encode` does, to `max_length`
    where it is asked to truncate. The folder is read back and the probes are scored by both.
    Neither `model` nor `tokenizer` is changed.

    Args:
        model: the reward model.
        tokenizer: its tokenizer.
        folder: a new or empty folder.
        card: what the README states.
        probes: texts to compare rewards on.
        max_length: most tokens of a text, as the card's figures were measured with; `None` to keep
            the tokenizer's limit.

    Raises:
        ValueError: a card without figures or with contradictory ones, or a limit that `encode`
            refuses.
        FileExistsError: the folder holds something.
        RuntimeError: a reward differs by more than 1e-5 (1e-2 in half precision) after reading it
            back, relative to rewards above 1; the folder is left for inspection, without a card.
    """
    words = copy.deepcopy(tokenizer)
    words.padding_side, words.truncation_side = "right", "left"
    words.init_kwargs |= {"padding_side": "right", "truncation_side": "left"}  # or it is not saved
    if max_length is not None:
        words.model_max_length = max_length
    backbone: Any = model.backbone
    if model.config.pooling != "last_not_pad":
        backbone = _with_own_padding(backbone, words)
    with new_folder(folder, card) as folder:
        words.save_pretrained(folder)
        standard = _native(model, backbone, words)
        saved = save_model(folder, standard, lambda: _custom(model, backbone, words), words, probes)
        difference = _difference(model, tokenizer, folder, words, probes, max_length)
    architecture = type(saved).__name__
    page = _page(card, architecture, isinstance(saved, RewardModel), max_length)
    (folder / "README.md").write_text(page, encoding="utf-8")
    return Exported(folder, architecture, difference)


def load(source: str | Path) -> PreTrainedModel:
    """Return a classifier with one output from a folder or the hub: metaopt's, TRL's, or any other.

    One whose head is linear and reads the last token comes as a `RewardModel`, whose rewards depend
    neither on the batch nor on padding; any other one as the class it has.

    Args:
        source: a local folder or an id of the hub. Weights are read from safetensors only, and
            code of the hub is never run.

    Raises:
        ValueError: several outputs, or weights are missing, which transformers would draw at
            random.
        OSError: there is no such folder or model.
    """
    refuse_adapter(source)
    model: Any
    with progress_bars():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source,
            attn_implementation="eager",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ValueError(
            f"{source} has no weights {', '.join(missing[:SHOWN])}{more} of "
            f"{type(model).__name__}; rewards by random ones mean nothing. Name a model with a "
            f"trained head, not its base."
        )
    if model.config.num_labels != 1:
        raise ValueError(f"{source} has {model.config.num_labels} outputs; a reward model has 1.")
    head: Any = linear_head(model)
    reads_last = head is getattr(model, "score", None) and head is not None and head.bias is None
    if reads_last and not isinstance(model, RewardModel):
        pad = model.config.get_text_config().pad_token_id
        model = RewardModel.on(model, "last" if pad is None else "last_not_pad")
        model.score = head
    classifier: PreTrainedModel = model.eval()
    return classifier


def _with_own_padding(backbone: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Give the tokenizer a pad token that no text contains; return a backbone that has its row."""
    ends = backbone.config.get_text_config().eos_token_id
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, None}
    used |= set(ends) if isinstance(ends, list) else {ends}
    if tokenizer.pad_token_id not in used:
        return backbone
    tokenizer.add_special_tokens({"pad_token": "<|reward_pad|>"})
    if tokenizer.pad_token_id < backbone.get_input_embeddings().weight.shape[0]:
        return backbone
    backbone = copy.deepcopy(backbone)
    backbone.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    return backbone


def _native(model: RewardModel, backbone: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the model as transformers' own class, sharing its weights, or `None` without one."""
    if model.config.pooling == "mean":
        return None
    config = copy.deepcopy(backbone.config)
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type = "regression"
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return native(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config, backbone, model.score)


def _custom(model: RewardModel, backbone: Any, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    config: Any = copy.deepcopy(model.config)
    config.backbone = settings_of(backbone)
    config.pad_token_id = tokenizer.pad_token_id
    saved = RewardModel(config, backbone)
    saved.score = model.score
    return saved


@torch.no_grad()
def _difference(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    words: PreTrainedTokenizerBase,
    probes: Sequence[str],
    max_length: int | None,
) -> float:
    """Return the largest difference of a probe's reward from the folder's."""
    training, dtype = model.training, model.backbone.dtype
    ids, mask, _ = encode(tokenizer, probes, max_length)
    try:
        expected = model.eval().rewards(ids.to(model.device), mask.to(model.device)).cpu()  # type: ignore[no-untyped-call]
    finally:
        model.train(training)
    again: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", dtype=dtype, use_safetensors=True
    )
    cut = {"truncation": max_length is not None, "verbose": False}
    batch = words(list(probes), padding=True, return_tensors="pt", **cut)
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    scores = again.to(model.device).eval()(ids, attention_mask=mask).logits[:, 0].cpu()
    half = dtype not in (torch.float32, torch.float64)
    return check_scores(folder, expected, scores, 1e-2 if half else TOLERANCE)


def _page(card: ModelCard, architecture: str, custom: bool, max_length: int | None) -> str:
    trust = ", trust_remote_code=True" if custom else ""
    cut = "" if max_length is None else ", truncation=True"
    return card.page(
        "Reward model",
        f"""
A {architecture} with one output: the reward of a text, larger for a better one. Only differences of
rewards for one prompt mean something: sigma(r(a) - r(b)) is the probability that a is the better
answer. Pad on the right, and cut long texts at their beginning, as the tokenizer does.""",
        f"""
from transformers import pipeline

reward = pipeline("text-classification", FOLDER{trust})
reward(prompt + answer{cut})  # [{{"label": "reward", "score": ...}}]""",
        ("reward-model", "trl"),
        {"library_name": "transformers", "pipeline_tag": "text-classification"},
        {} if max_length is None else {"most tokens of a text": max_length},
    )
