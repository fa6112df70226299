"""Process reward models as folders with a card, which transformers loads, and from such folders.

A model of the transformers library is written as a token classifier with the labels wrong and
right: the logits of a token are (0, z), and the token at which a step ends (its separator's last
one) holds that step's z. Models on features are read by `load` alone; those of a frozen language
model name it with its hash, and do not hold it.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, AutoModelForTokenClassification

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
from metaopt.nn.precision import PRECISIONS
from metaopt.nn.pretrained import progress_bars
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.model.feature_scorer import FeatureScorer
from metaopt.problems.process_reward.model.frozen_features import FrozenFeatures
from metaopt.problems.process_reward.model.frozen_reader import FrozenReader
from metaopt.problems.process_reward.model.process_reward_model import (
    ProcessRewardModel,
    ProcessRewardModelConfig,
)
from metaopt.problems.process_reward.model.scorer import TransformerScorer
from metaopt.problems.process_reward.model.steps import check_steps, scores
from metaopt.problems.process_reward.model.text_features import TextFeatures

register(ProcessRewardModelConfig, ProcessRewardModel, AutoModelForTokenClassification)

LAYERS, FEATURES, SETTINGS = "layers.safetensors", "features.safetensors", "steps.json"
LABELS = ("wrong", "right")
TOLERANCE = {"float32": 1e-4, "master": 5e-2, "official": 5e-2}
"""By precision: merged adapters and a head folded into one map are rounded once more."""

Scorer = TransformerScorer | FeatureScorer
EXPORTED = (TransformerScorer, FeatureScorer)


def export(
    scorer: Scorer,
    tensors: Mapping[str, Tensor],
    folder: str | Path,
    card: ModelCard,
    probes: Sequence[Chain],
) -> float:
    """Write a trained scorer; return the largest difference of a score after reading it back.

    The folder holds all weights (safetensors; adapters are merged in float32, and a head on the
    language model's logits becomes one on its hidden states), how chains are read (JSON), and the
    tokenizer and the configuration, or the features. A frozen language model that a head reads is
    not copied: the folder has its source and its hash, which `load` compares.

    Args:
        scorer, tensors: the model.
        folder: a new or empty folder.
        card: what the README states.
        probes: chains to compare scores on.

    Raises:
        ValueError: a card without data or figures, or probes without steps.
        FileExistsError: the folder holds something.
        RuntimeError: a score differs by more than 1e-4 (5e-2 in bfloat16) after reading it back,
            relative to scores above 1; the folder is left for inspection, without a card.
    """
    check_steps(probes)
    with new_folder(folder, card) as folder:
        if isinstance(scorer, FeatureScorer):
            settings = _write_features(scorer, tensors, folder)
        else:
            texts = [text for chain in probes for text in (chain.prompt, *chain.steps)]
            settings = _write_transformer(scorer, tensors, folder, texts)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        read, weights = load(folder)
        device = next(iter(tensors.values())).device
        weights = {k: v.to(device) for k, v in weights.items()}
    tolerance = TOLERANCE[settings.get("precision", "float32")]
    expected, again = _scores(scorer, tensors, probes), _scores(read, weights, probes)
    difference = check_scores(folder, expected, again, tolerance)
    (folder / "README.md").write_text(_page(card, folder, settings), encoding="utf-8")
    return difference


def load(folder: str | Path) -> tuple[Scorer, dict[str, Tensor]]:
    """Return the scorer of a folder that `export` wrote, and its tensors.

    Raises:
        FileNotFoundError: it is not such a folder.
        ValueError: it was written by another kind of scorer than those here, or the frozen model
            that it names is another one by now.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{folder} has no {SETTINGS}; give a folder that `export` wrote.")
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    kind = settings.pop("kind", None)
    if kind == "features":
        stored = load_file(folder / FEATURES)
        features = TextFeatures(tuple(settings.pop("vocabulary")), **stored)
        return FeatureScorer((), features=features, **settings), load_file(folder / LAYERS)
    if kind == "frozen":
        return _read_frozen(folder, settings), load_file(folder / LAYERS)
    if kind != "transformer":
        raise ValueError(
            f"{folder / SETTINGS} has kind={kind!r}; legal: transformer, features, frozen."
        )
    # In float32: the head is in float32 where the backbone is in bfloat16, and transformers would
    # read both in one precision.
    with progress_bars():
        model: Any = AutoModelForTokenClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    backbone = model.base_model.to(PRECISIONS[settings["precision"]][0])
    tensors = {f"backbone.{k}": v.detach() for k, v in backbone.named_parameters()}
    head: Any = linear_head(model)
    for name, value in head.named_parameters():
        tensors[f"head.{name}"] = (value[1:] - value[:1]).detach()
    return TransformerScorer((), backbone.config, folder, **settings), tensors


def _scores(scorer: Scorer, tensors: Mapping[str, Tensor], chains: Sequence[Chain]) -> Tensor:
    """Return the log-odds of all steps, chain after chain."""
    steps = scorer.encode(chains).to(next(iter(tensors.values())).device)
    return scores(scorer, tensors, steps)[steps.mask]


def _write_features(
    scorer: FeatureScorer, tensors: Mapping[str, Tensor], folder: Path
) -> dict[str, Any]:
    features: Any = scorer.features
    more: dict[str, Any]
    if isinstance(features, FrozenFeatures):
        names: tuple[str, ...] = ("mean", "deviation")
        reader = features.reader
        more = {
            "kind": "frozen",
            "reader": reader.settings,
            "fingerprint": reader.fingerprint,
            "content_hash": reader.content_hash,
        }
    else:
        names = ("idf", "components", "mean", "deviation")
        more = {"kind": "features", "vocabulary": list(features.vocabulary)}
    save_file({k: getattr(features, k).contiguous() for k in names}, folder / FEATURES)
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / LAYERS)
    return {
        "widths": list(scorer.network.sizes[1:-1]),
        "activation": scorer.network.activation,
        "dropout": scorer.network.dropout,
        **more,
    }


def _read_frozen(folder: Path, settings: dict[str, Any]) -> FeatureScorer:
    """Return the scorer of features of a model that is not in the folder but named by it."""
    reader = FrozenReader(**settings.pop("reader"))
    if settings.pop("content_hash") != reader.content_hash:
        raise ValueError(
            f"{reader.source} is not the model that {folder} was trained on: its weights or its "
            f"vocabulary differ. Name the right one as reader.source in {folder / SETTINGS}."
        )
    if settings.pop("fingerprint") != reader.fingerprint:
        warnings.warn(
            f"{reader.source} has the weights and the vocabulary that {folder} was trained on, but "
            f"another configuration or tokenizer, as after an upgrade of transformers: compare "
            f"its scores with those of the version it was trained with.",
            stacklevel=3,
        )
    features = FrozenFeatures(reader, **load_file(folder / FEATURES))
    return FeatureScorer((), features=features, **settings)


def _write_transformer(
    scorer: TransformerScorer, tensors: Mapping[str, Tensor], folder: Path, texts: Sequence[str]
) -> dict[str, Any]:
    reader = scorer.backbone.merged({k: v.detach().cpu() for k, v in tensors.items()})
    backbone: Any = reader.backbone
    head = nn.Linear(reader.head.in_features, 2, dtype=reader.head.weight.dtype)
    for name, value in reader.head.named_parameters():
        head.get_parameter(name).data = torch.cat([torch.zeros_like(value), value.detach()])
    scorer.save_text(folder)
    config = _labelled(copy.deepcopy(backbone.config))
    standard = native(MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, config, backbone, head)
    save_model(folder, standard, lambda: _custom(backbone, head), scorer.tokens.tokenizer, texts)
    return {"kind": "transformer", **scorer.settings, "head": "hidden", "lora": None}


def _labelled(config: Any) -> Any:
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {name: i for i, name in enumerate(LABELS)}
    return config


def _custom(backbone: Any, head: nn.Linear) -> ProcessRewardModel:
    config = _labelled(ProcessRewardModelConfig(settings_of(backbone)))
    model = ProcessRewardModel(config, backbone)
    model.score = head
    return model


def _page(card: ModelCard, folder: Path, settings: Mapping[str, Any]) -> str:
    meaning = (
        "The log-odds that a chain of steps is right up to and with each of its steps; larger is "
        "better."
    )
    usage = """
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.model.export import load
from metaopt.problems.process_reward.model.steps import scores

scorer, tensors = load(FOLDER)
steps = scorer.encode([Chain(PROMPT, STEPS)])
logits = scores(scorer, tensors, steps)  # (chains, steps), of no meaning where not steps.mask"""
    if settings["kind"] == "frozen":
        meaning += (
            f"\n\nIt reads the steps with a frozen model that is not in this folder, and is looked "
            f"for at `{settings['reader']['source']}`: `reader.source` in `{SETTINGS}`."
        )
    library = "metaopt"
    if settings["kind"] == "transformer":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        library, usage = "transformers", _token_usage(settings, "auto_map" in config) + usage
    return card.page(
        "Process reward model", meaning, usage, ("process-reward-model",), {"library_name": library}
    )


def _token_usage(settings: Mapping[str, Any], custom: bool) -> str:
    """Return Python that scores a chain of a question without images by transformers alone."""
    trust = ", trust_remote_code=True" if custom else ""
    read = """logits = model(torch.tensor([ids])).logits[0]
log_odds = (logits[:, 1] - logits[:, 0])[ends[1:]]  # one per step"""
    if settings["layout"] == "prefix":
        read = """rows = [torch.tensor([ids[: end + 1]]) for end in ends[1:]]  # one for each step
logits = torch.stack([model(row).logits[0, -1] for row in rows])
log_odds = logits[:, 1] - logits[:, 0]  # one per step"""
    return f"""
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})
model = AutoModelForTokenClassification.from_pretrained(FOLDER{trust})
begins = (tokenizer.bos_token_id, tokenizer.cls_token_id)
ids, ends = [token for token in tokenizer("")["input_ids"] if token in begins], []
for text in (PROMPT, *STEPS):  # one by one, so that a step's tokens do not depend on the next one
    for piece in (text, {settings["separator"]!r}):
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    ends.append(len(ids) - 1)
{read}

# the same, and several chains at once, by metaopt"""
