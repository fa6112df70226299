"""Process reward models as folders with a card, and from such folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from metaopt.problems.process_reward.model.feature_scorer import FeatureScorer
from metaopt.problems.process_reward.model.scorer import TransformerScorer
from metaopt.problems.process_reward.model.steps import Solution, check_steps, scores
from metaopt.problems.process_reward.model.text_features import TextFeatures

WEIGHTS, FEATURES, SETTINGS = "steps.safetensors", "features.safetensors", "steps.json"
TOLERANCE = {"float32": 1e-6, "master": 1e-2, "official": 1e-2}


class ProcessCard(NamedTuple):
    """What a reader has to know about a process reward model.

    Args:
        data: what it was trained and tested on, in a sentence.
        measured: figures by name, such as {"best of 8": 0.93}, from data it has not seen.
        weights: domain weights it was trained with, by domain; empty for none.
        base: id of the model it started from, or "" for none.
        licence: identifier for the hub, or "".
        notes: further paragraphs in Markdown.
    """

    data: str
    measured: Mapping[str, float]
    weights: Mapping[str, float] = {}
    base: str = ""
    licence: str = ""
    notes: str = ""


def export(
    scorer: TransformerScorer | FeatureScorer,
    tensors: Mapping[str, Tensor],
    folder: str | Path,
    card: ProcessCard,
    probes: Sequence[Solution],
) -> float:
    """Write a trained scorer; return the largest difference of a score after reading it back.

    The folder holds what was trained (safetensors), how chains are read (JSON), the tokenizer and
    the configuration, or the features. With LoRA on a pretrained model the frozen weights stay
    where they came from, and `load` asks for them there.

    Args:
        scorer, tensors: the model.
        folder: a new or empty folder.
        card: what the README states.
        probes: chains to compare scores on.

    Raises:
        ValueError: a card without data or figures, or probes without steps.
        FileExistsError: the folder holds something.
        RuntimeError: a score differs by more than 1e-6 (1e-2 in bfloat16) after reading it back,
            relative to scores above 1; the folder is left for inspection, without a card.
    """
    if not card.data.strip() or not card.measured:
        raise ValueError(
            f"a card needs data and measured; got {card.data!r} and {dict(card.measured)}."
        )
    check_steps(probes)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().clone() for k, v in tensors.items()}, folder / WEIGHTS)
    if isinstance(scorer, FeatureScorer):
        settings = _write_features(scorer, folder)
    else:
        settings = _write_transformer(scorer, folder)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    difference = _difference(scorer, tensors, folder, probes, settings.get("precision", "float32"))
    (folder / "README.md").write_text(_page(card, settings), encoding="utf-8")
    return difference


def load(
    folder: str | Path,
) -> tuple[TransformerScorer | FeatureScorer, dict[str, Tensor]]:
    """Return the scorer of a folder that `export` wrote, and its tensors.

    Raises:
        FileNotFoundError: it is no such folder.
        ValueError: it was written by another kind of scorer than those here.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{folder} has no {SETTINGS}; give a folder that `export` wrote.")
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    kind, tensors = settings.pop("kind", None), load_file(folder / WEIGHTS)
    if kind == "features":
        stored = load_file(folder / FEATURES)
        features = TextFeatures(tuple(settings.pop("vocabulary")), **stored)
        return FeatureScorer((), features=features, **settings), tensors
    if kind != "transformer":
        raise ValueError(f"{folder / SETTINGS} has kind={kind!r}; legal: transformer, features.")
    source = settings.pop("source") or AutoConfig.from_pretrained(folder)
    return TransformerScorer((), source, folder, **settings), tensors


def _write_features(scorer: FeatureScorer, folder: Path) -> dict[str, Any]:
    found = scorer.features
    names = ("idf", "components", "mean", "deviation")
    save_file({k: getattr(found, k).contiguous() for k in names}, folder / FEATURES)
    return {
        "kind": "features",
        "widths": list(scorer.widths),
        "activation": scorer.activation,
        "dropout": scorer.dropout,
        "vocabulary": list(found.vocabulary),
    }


def _write_transformer(scorer: TransformerScorer, folder: Path) -> dict[str, Any]:
    scorer.save_text(folder)
    pretrained = isinstance(scorer.source, (str, Path)) and scorer.settings["lora"] is not None
    source = str(scorer.source) if pretrained else None
    return {"kind": "transformer", "source": source, **scorer.settings}


def _difference(
    scorer: TransformerScorer | FeatureScorer,
    tensors: Mapping[str, Tensor],
    folder: Path,
    probes: Sequence[Solution],
    precision: str,
) -> float:
    """Return the largest difference of a probe's scores from the folder's.

    Raises:
        RuntimeError: it is too large.
    """
    device = next(iter(tensors.values())).device
    steps = scorer.encode(probes)
    expected = scores(scorer, tensors, steps.to(device))[steps.mask.to(device)]
    read, weights = load(folder)
    again = read.encode(probes).to(device)
    weights = {k: v.to(device) for k, v in weights.items()}
    found = scores(read, weights, again)[again.mask]
    worst = ((found - expected).abs() / expected.abs().clamp(min=1)).max().item()
    if not worst <= TOLERANCE[precision]:
        raise RuntimeError(
            f"{folder} gives scores that differ by {worst:.2g}, more than "
            f"{TOLERANCE[precision]:g}; it does not hold this model."
        )
    return (found - expected).abs().max().item()


def _page(card: ProcessCard, settings: Mapping[str, Any]) -> str:
    head = ["library_name: metaopt"]
    head += [f"base_model: {card.base}"] if card.base else []
    head += [f"license: {card.licence}"] if card.licence else []
    front = "\n".join(["---", *head, "tags:", "- process-reward-model", "---"])
    rows = [("data", " ".join(card.data.split()).replace("|", "\\|"))]
    rows += [(name, f"{value:.4g}") for name, value in card.measured.items()]
    rows += [(f"weight of {name}", f"{value:.4g}") for name, value in card.weights.items()]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    where = settings.get("source")
    frozen = f"\nThe frozen weights are those of {where}.\n" if where else ""
    notes = f"\n{card.notes.strip()}\n" if card.notes.strip() else ""
    return f"""{front}

# Process reward model

The log-odds that a chain of steps is right up to and with each of its steps; larger is better.

| | |
|---|---|
{table}
{frozen}
```python
from metaopt.problems.process_reward.model.export import load
from metaopt.problems.process_reward.model.scorer import scores

scorer, tensors = load(FOLDER)
steps = scorer.encode(CHAINS)  # of metaopt.problems.process_reward.data.formats.Chain
logits = scores(scorer, tensors, steps)  # (chains, steps), of no meaning where not steps.mask
```
{notes}"""
