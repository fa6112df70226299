"""The weights of a run's training examples, for trainers of other programs: weights.parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from metaopt.data.weights_file import ExampleWeights, write_weights
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.protocols import Tree
from metaopt.files.reading import read_json
from metaopt.problems.domain_reweighting.rater import Rater
from metaopt.problems.domain_reweighting.rating import FILE as RATER
from metaopt.problems.domain_reweighting.rating import row_scores, top, write_rater
from metaopt.problems.domain_reweighting.task import Identified, Texts

if TYPE_CHECKING:
    from metaopt.problems.domain_reweighting.problem import DomainReweighting

FILE = "weights.parquet"
PART = 256
"""Examples whose losses are computed at once."""


@torch.no_grad()
def learned_weights(problem: DomainReweighting, outer: Tree, inner: GradientState) -> Tensor:
    """Return the weight of each training example in the inner loss, (n,); of R tables the mean.

    Raises:
        ValueError: the run has none of its own: weights that gradients decide in each batch.
    """
    if problem.train_on == "meta" or problem.weights.reads == "gradients":
        raise ValueError("the run has learned no weights of its training examples.")
    task, n = problem.task, len(problem.domain)
    rows, values = torch.arange(n), torch.zeros(0, device=problem.device)
    if problem.weights.reads == "losses":
        tensors = inner.params | inner.buffers
        parts = [task.row_losses(tensors, part, train=False) for part in rows.split(PART)]
        values = torch.cat(parts, -1)
    phi = problem.final_phi(outer, inner)
    weights = problem.weights(phi, rows.to(problem.device), problem.domain, values).double().cpu()
    return weights.flatten(0, -2).mean(0) if weights.ndim > 1 else weights


def example_weights(problem: DomainReweighting, outer: Tree, inner: GradientState) -> Tensor:
    """Return what each training example counts for a trainer that draws all equally often, (n,).

    Their mean is 1. With sampling=domains an example of a small domain is drawn more often here
    than there, and its weight is larger by that much.
    """
    task, weights = problem.task, learned_weights(problem, outer, inner)
    sizes = torch.bincount(task.domain)
    weights = weights * (problem.sampler.share.double() / sizes)[task.domain]
    return weights / weights.mean()


def export_weights(
    problem: DomainReweighting, task: Identified, outer: Tree, inner: GradientState, folder: Path
) -> str:
    """Write weights.parquet, and return a line that says so, or why there is none."""
    if problem.train_on == "meta" or problem.weights.reads == "gradients":
        return f"no {FILE}: the run has no weights of its training examples"
    weights = example_weights(problem, outer, inner).numpy()
    scores, keep = np.full(len(weights), np.nan), weights > 0
    ordered = row_scores(problem.weights, outer, problem.domain)
    if isinstance(problem.weights, Rater) and ordered is not None:
        scores = ordered.double().cpu().numpy()
    if ordered is not None:
        keep &= top(ordered, problem.export_keep).cpu().numpy()
    content = ExampleWeights(
        task.examples,
        weights,
        scores,
        keep,
        [problem.task.domains[k] for k in problem.task.domain.tolist()],
        task.hashed_columns,
        _origin(folder),
    )
    write_weights(folder / FILE, content)
    return f"weights of {len(weights)} training examples for other trainers: {folder / FILE}"


def export_rater(problem: DomainReweighting, outer: Tree, folder: Path) -> str:
    """Write rater.safetensors, and return a line that says what scores files with it."""
    assert isinstance(problem.weights, Rater)
    assert isinstance(problem.task, Texts)
    write_rater(folder / RATER, problem.weights, outer, problem.task, _origin(folder))
    return f"a rater of other files: metaopt score {folder} FILE"


def _origin(folder: Path) -> dict[str, str | None]:
    """Return where weights come from: the run's folder, commit and version."""
    path = folder / "provenance.json"
    started = read_json(path, "Delete it.") if path.exists() else {}
    run = "/".join(folder.parts[-2:])
    version = started.get("versions", {}).get("metaopt")
    return {"run": run, "commit": started.get("commit"), "metaopt": version}
