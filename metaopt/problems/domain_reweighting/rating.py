"""Scores of training examples: which are kept, how well they rank, and a rater on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaopt.engine.protocols import Tree
from metaopt.files.errors import FolderError
from metaopt.files.writing import replacing
from metaopt.metrics.rank_correlation import spearman
from metaopt.nn.encoder import Encoder
from metaopt.problems.domain_reweighting.rater import Rater
from metaopt.problems.domain_reweighting.rater_features import FEATURES
from metaopt.problems.domain_reweighting.rater_networks import NETWORKS
from metaopt.problems.domain_reweighting.task import Graded, Texts
from metaopt.problems.domain_reweighting.weights import Weights, WeightTable

if TYPE_CHECKING:
    from metaopt.problems.domain_reweighting.problem import DomainReweighting

FILE = "rater.safetensors"
FORMAT = 1


def top(values: Tensor, share: float) -> Tensor:
    """Return which of n values are among the share of largest ones, at least one; ties by order."""
    chosen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    order = values.argsort(descending=True, stable=True)
    chosen[order[: max(1, round(share * len(values)))]] = True
    return chosen


@torch.no_grad()
def row_scores(weights: Weights, outer: Tree, domain: Tensor) -> Tensor | None:
    """Return a number for each training example that orders them, (n,); `None` where none does."""
    if isinstance(weights, Rater):
        return weights.rate_features(outer, weights.rows)
    if isinstance(weights, WeightTable):
        table = weights(outer, torch.arange(len(domain)), domain, domain)
        return table.flatten(0, -2).mean(0) if table.ndim > 1 else table
    return None


@torch.no_grad()
def rank_correlations(problem: DomainReweighting, outer: Tree) -> dict[str, float]:
    """Return Spearman's correlations of scores with what a task knows about its texts.

    `spearman_rows` on its training examples, and `spearman_unseen` of a rater on others; missing
    where all scores are equal, or one is not finite.
    """
    task = problem.task
    scores = row_scores(problem.weights, outer, problem.domain)
    if not isinstance(task, Graded) or scores is None or not bool(scores.isfinite().all()):
        return {}
    known = ~task.row_quality.isnan()
    figures = {"spearman_rows": spearman(scores.cpu()[known], task.row_quality[known])}
    if isinstance(problem.weights, Rater):
        unseen = problem.weights.rate(outer, task.unseen_texts)
        figures["spearman_unseen"] = spearman(unseen.cpu(), task.unseen_quality)
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def write_rater(
    path: Path, rater: Rater, outer: Tree, task: Texts, origin: Mapping[str, Any]
) -> None:
    """Write a rater, with the scores of its training examples, as safetensors with JSON in it."""
    from safetensors.torch import save

    scores = rater.rate_features(outer, rater.rows).sort().values
    tensors = {f"phi.{k}": v for k, v in outer.items()} | {
        "centre": rater.centre, "scale": rater.scale, "scores": scores,
    }  # fmt: skip
    description = {
        "format": FORMAT,
        "features": {"kind": rater.features.kind, **rater.features.settings},
        "network": {"kind": rater.network.kind, **rater.network.settings},
        "columns": list(task.text_columns),
        **origin,
    }
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as file:
        file.write(save(plain, {"rater": json.dumps(description)}))


class SavedRater:
    """A rater from a run's folder; reading it runs no code that the folder names.

    Args:
        path: of the file.

    Attributes:
        columns: of a file whose texts, joined by newlines, it reads.
        examples: what the CDF of its scores is among.

    Raises:
        FolderError: the file is damaged, or another version wrote it.
    """

    examples = "training examples"

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                description = json.loads(file.metadata()["rater"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            if description["format"] != FORMAT:
                raise ValueError(f"its format is {description['format']}, not {FORMAT}")
            if not all(bool(t.isfinite().all()) for t in tensors.values()):
                raise ValueError("it has numbers that are not finite")
            self.rater = Rater(
                _made(FEATURES, description["features"]), _made(NETWORKS, description["network"])
            )
            self.rater.centre, self.rater.scale = tensors["centre"], tensors["scale"]
            self.training_scores = tensors["scores"]
            self.columns: Sequence[str] = description["columns"]
            self.phi = {k.removeprefix("phi."): v for k, v in tensors.items() if k[:4] == "phi."}
            self._rate_one()  # shapes that do not fit are found before a file is read
        except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise FolderError(
                f"{path} holds no rater that this version reads: {error}. Run it again."
            ) from error

    def _rate_one(self) -> None:
        """Rate a text, or features of the same shape where reading a text needs a large model."""
        rater = self.rater
        if isinstance(rater.features, Encoder):
            rater.rate_features(self.phi, rater.prepared(rater.centre[None]))
        else:
            rater.rate(self.phi, [""])

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the score of each text, (n,), and its CDF among the training examples.

        A score has no scale; the CDF is the share of training examples whose score is not larger.
        """
        scores = self.rater.rate(self.phi, texts)
        below = torch.searchsorted(self.training_scores, scores, right=True)
        return scores, below / len(self.training_scores)


def _made(classes: Mapping[str, Any], description: Mapping[str, Any]) -> Any:
    settings = {k: v for k, v in description.items() if k != "kind"}
    return classes[description["kind"]](**settings)
