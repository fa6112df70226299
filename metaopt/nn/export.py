"""What all exports of models share: a folder of their own, and scores that are read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def new_folder(folder: str | Path) -> Path:
    """Return a folder that is there and empty.

    Raises:
        FileExistsError: the folder holds something, or is a file.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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


def reads_tokenizer(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    texts: Sequence[str],
) -> bool:
    """Return whether `AutoTokenizer` reads the tokenizer of a folder as what was written there.

    For some configurations, such as Qwen2's, transformers takes the model's own tokenizer class
    whatever the folder says, and splits words of another tokenizer into letters.
    """
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder, config=config)
    return bool(again(list(texts))["input_ids"] == tokenizer(list(texts))["input_ids"])


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Inside the block transformers shows no bars for files that are written and read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
