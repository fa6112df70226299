"""What exporters of transformers models share: classes, the folder, and scores read back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from metaopt.nn.model_card import ModelCard
from metaopt.nn.pretrained import progress_bars


def register(config: Any, model: Any, auto: Any) -> None:
    """Let an auto class of transformers make a model, and copy its source file to the weights."""
    AutoConfig.register(config.model_type, config, exist_ok=True)
    auto.register(config, model, exist_ok=True)
    config.register_for_auto_class()
    model.register_for_auto_class(auto.__name__)


@contextmanager
def new_folder(folder: str | Path, card: ModelCard) -> Iterator[Path]:
    """Make an empty folder for a model; inside the block transformers shows no progress bars.

    Its files may be read by whoever may read the folder: safetensors writes for the owner alone.

    Raises:
        ValueError: a card without data or figures, or with contradictory ones.
        FileExistsError: the folder holds something, or is a file.
    """
    card.check()
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bars(shown=False):
        yield folder
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(path.stat().st_mode | folder.stat().st_mode & 0o444)


def settings_of(backbone: Any) -> dict[str, Any]:
    """Return a backbone's configuration without the place that it was read from."""
    values: dict[str, Any] = backbone.config.to_dict()
    return {k: v for k, v in values.items() if k != "_name_or_path"}


def linear_head(model: Any) -> nn.Linear | None:
    """Return the one linear layer that a classifier adds to its base; `None` for another head."""
    parts = {k: v for k, v in model.named_children() if not isinstance(v, nn.Dropout)}
    parts.pop(model.base_model_prefix, None)
    head = parts.popitem()[1] if len(parts) == 1 else None
    return head if isinstance(head, nn.Linear) else None


def native(classes: Any, config: Any, backbone: Any, head: nn.Linear) -> Any:
    """Return a model as transformers' own class, sharing its weights; `None` without such a class.

    Args:
        classes: of transformers, by the class of the configuration.
        config: of the classifier.
        backbone, head: of the model.
    """
    kind = classes.get(type(config), None)
    if kind is None:
        return None
    with torch.device("meta"):  # both of its parts are replaced, so no weight is drawn
        model = kind(config)
    theirs = linear_head(model)
    if theirs is None or (theirs.bias is None) != (head.bias is None):
        return None
    if type(model.base_model) is not type(backbone):
        return None
    setattr(model, model.base_model_prefix, backbone)
    setattr(model, next(k for k, v in model.named_children() if v is theirs), head)
    return model


def save_model(
    folder: Path,
    model: Any,
    custom: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
) -> PreTrainedModel:
    """Write a model next to its tokenizer, as transformers' own class where that reads it.

    For some configurations, such as Qwen2's, `AutoTokenizer` takes the model's own tokenizer class
    whatever the folder says, and splits words of another tokenizer into letters.

    Args:
        folder: holds the tokenizer.
        model: of transformers' own class, or `None`.
        custom: makes the model of a class whose source file is written too.
        tokenizer: what is in the folder.
        texts: compared as tokens.

    Returns:
        The model that was written.
    """
    if model is not None:
        again = AutoTokenizer.from_pretrained(folder, config=model.config)
        if again(list(texts))["input_ids"] != tokenizer(list(texts))["input_ids"]:
            model = None
    saved: PreTrainedModel = custom() if model is None else model
    saved.save_pretrained(folder)
    return saved


def check_scores(folder: Path, expected: Tensor, scores: Tensor, tolerance: float) -> float:
    """Return the largest difference of a score after reading a model back from its folder.

    Args:
        folder: of the model.
        expected: scores of the model that was written.
        scores: of the model that was read.
        tolerance: largest legal difference, relative to scores above 1.

    Raises:
        RuntimeError: a score differs by more.
    """
    difference = (scores - expected).abs()
    worst = (difference / expected.abs().clamp(min=1)).max().item()
    if not worst <= tolerance:  # also where it is nan
        raise RuntimeError(
            f"{folder} gives scores that differ by {worst:.2g}, more than {tolerance:g}; it does "
            f"not hold this model. The folder is left for inspection, without a card."
        )
    return difference.max().item()
