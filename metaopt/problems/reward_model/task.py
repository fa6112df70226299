"""What pairs and models offer to learning from preferences, and the figures they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from metaopt.engine.protocols import Tree
from metaopt.problems.reward_model.model.training import bradley_terry, ordered


class PreferenceTask(ABC):
    """Labelled pairs and unlabelled responses, and a batch of G reward models of both.

    Pairs are indexed by one range that all models share; what lies at an index is each model's own.
    Parameters have a leading axis G; G = R runs (seeds) times the members of an ensemble.

    Attributes:
        rows: number of labelled pairs.
        prompts: number of prompts with unlabelled responses.
        resplit: test pairs for each training pair where seeds are splits of one data set; else 0.
        frozen: weights by name that nobody trains; see `GradientProblem.frozen`.
    """

    rows: int
    prompts: int
    resplit: float = 0.0
    frozen: Mapping[str, Tensor] = {}

    @abstractmethod
    def init(self, generator: Generator) -> tuple[Tree, Tree]:
        """Return the models' parameters, and their buffers, which are not drawn."""

    @abstractmethod
    def row_losses(self, tensors: Mapping[str, Tensor], rows: Tensor, train: bool = True) -> Tensor:
        """Return the loss of each pair, weighted where pairs have weights, (G, B).

        Args:
            tensors: parameters and buffers under one set of names.
            rows: indices (B,) of labelled pairs, in [0, rows).
            train: with dropout.
        """

    @abstractmethod
    def responses(self, tensors: Mapping[str, Tensor], prompts: Tensor) -> Tensor:
        """Return the rewards of the k responses to each prompt, (G, B, k).

        Args:
            tensors: as above.
            prompts: indices (B,), in [0, prompts).
        """

    @abstractmethod
    def metrics(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return figures on data that no model was trained on, (R,) each."""

    @abstractmethod
    def deliver(self, tensors: Mapping[str, Tensor], folder: Path) -> str:
        """Write the trained models into a folder; return what to print."""

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return what labels and further models cost in addition to `spent`, by unit."""
        return {}

    def conclude(self, tensors: Mapping[str, Tensor], key: int) -> Tree:
        """Return what is measured once, at the end, by name; `metrics` reads it in `tensors`."""
        return {}

    def draw(self, conclusion: Mapping[str, Tensor], folder: Path) -> list[Path]:
        """Write figures of what `conclude` returned into a folder; return their paths."""
        return []


def reward_figures(
    tests: Mapping[str, tuple[Tensor, Tensor]], responses: Tensor
) -> dict[str, Tensor]:
    """Return accuracy, loss and mean |margin| of each test, and J, (R,) each.

    Args:
        tests: rewards (R, n) of the better and of the other answers, by name.
        responses: rewards (R, P, k) of unlabelled responses.
    """
    figures: dict[str, Tensor] = {}
    for name, (better, other) in tests.items():
        figures[f"{name}_accuracy"] = ordered(better - other)
        figures[f"{name}_loss"] = bradley_terry(better, other).mean(-1)
        figures[f"{name}_spread"] = (better - other).abs().mean(-1)
    return figures | {"reward_spread": reward_spread(responses).mean(-1)}


def reward_spread(rewards: Tensor) -> Tensor:
    """Return how far apart k rewards of one prompt are, in [(k - 1) / (2 k), (k - 1) / k).

    J = (2 / k^2) sum_{i < j} sigma(|r_i - r_j|).

    It needs no label. The slope of sigma is largest for the smallest gaps, so ascent on J mostly
    pushes near-ties apart, in the order they have already; at an exact tie the subgradient is 0.

    Args:
        rewards: (..., k), k >= 2.

    Returns:
        (...), the shape without the last axis.

    Raises:
        ValueError: fewer than two rewards.

    References: Wang et al., Secrets of RLHF Part II, arXiv 2401.06080, 2024; Dou et al., MetaRM,
    arXiv 2405.00438, 2024 (AAAI 2025).
    """
    k = rewards.shape[-1]
    if k < 2:
        raise ValueError(f"a spread needs two or more rewards a prompt; got {k}.")
    first, second = torch.triu_indices(k, k, 1, device=rewards.device)
    gaps = (rewards[..., first] - rewards[..., second]).abs()
    return 2 / k**2 * torch.sigmoid(gaps).sum(-1)
