"""What learning from preferences asks of its models and its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Generator, Tensor

from metaopt.engine.protocols import Tree


class PreferenceTask(Protocol):
    """Labelled pairs and unlabelled responses, and reward models of both, G side by side.

    Rows are indices that all models share; what lies at a row is each model's own. Parameters have
    a leading axis G; G = R runs (seeds) times the members of an ensemble.

    Attributes:
        rows: number of labelled pairs.
        prompts: number of prompts with unlabelled responses.
    """

    rows: int
    prompts: int

    def init(self, generator: Generator) -> tuple[Tree, Tree]:
        """Return the models' parameters, and what travels along untrained, which is not drawn."""
        ...

    def row_losses(self, tensors: Mapping[str, Tensor], rows: Tensor, train: bool = True) -> Tensor:
        """Return the loss of each pair, weighted where pairs have weights, (G, B).

        Args:
            tensors: parameters and buffers under one set of names.
            rows: indices (B,) of labelled pairs, in [0, rows).
            train: with dropout.
        """
        ...

    def responses(self, tensors: Mapping[str, Tensor], prompts: Tensor) -> Tensor:
        """Return the rewards of the k responses to each prompt, (G, B, k).

        Args:
            tensors: as above.
            prompts: indices (B,), in [0, prompts).
        """
        ...

    def metrics(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return figures on data that no model has seen, (R,) each."""
        ...

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return what labels and further models cost beside `spent`, by unit."""
        ...

    def conclude(self, tensors: Mapping[str, Tensor], key: int) -> Tree:
        """Return what is found out once, at the end, by name; `metrics` reads it in `tensors`."""
        ...

    def draw(self, found: Mapping[str, Tensor], folder: Path) -> list[Path]:
        """Write figures of what `conclude` returned into a folder; return their paths."""
        ...

    def deliver(self, tensors: Mapping[str, Tensor], folder: Path) -> str:
        """Write the trained models into a folder, where they can be kept; return what to print."""
        ...
