"""What `DomainReweighting` asks of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from metaopt.data.weights_file import Example
from metaopt.engine.protocols import Tree


class ReweightingTask(Protocol):
    """Training examples of K domains and meta examples, each with a loss under a model.

    A task may train R models at once: its losses then have a leading axis, (R, B), and its
    metrics are (R,).

    Attributes:
        domains: the K domains' names.
        domain: the domain of each training example, integers (n,) on the CPU; none is empty.
        meta_rows: number of meta examples; 0 where there are none.
        quality: how far each domain can be trusted, (K,), >= 0; `None` where nobody knows.
        resplit: see `metaopt.engine.protocols.BilevelProblem`.
    """

    domains: tuple[str, ...]
    domain: Tensor
    meta_rows: int
    quality: Tensor | None
    resplit: float

    def init(self, generator: Generator) -> tuple[Tree, Tree]:
        """Return the model's parameters and its buffers, by name."""
        ...

    def row_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the training loss of each example, (B,).

        Args:
            tensors: parameters and buffers.
            rows: indices of training examples, (B,), on the CPU.
            train: whether dropout is on.
        """
        ...

    def meta_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the meta-loss of each meta example, (B,)."""
        ...

    def metrics(self, tensors: Tree) -> Mapping[str, float | Tensor]:
        """Return figures on data that neither level has used."""
        ...


@runtime_checkable
class Stratified(Protocol):
    """A task whose meta examples are of several kinds, such as right and wrong ones.

    Meta batches then hold each kind in its share. Where chance sets the shares, they move the
    model's mean score in every meta-gradient, and that outweighs what tells domains apart.

    Attributes:
        meta_kinds: the kind of each meta example, integers (m,) on the CPU.
    """

    meta_kinds: Tensor


@runtime_checkable
class Autocast(Protocol):
    """A task whose losses are computed in coarser numbers than its parameters.

    Attributes:
        compute_dtype: of the computation; `None` for that of the parameters.
    """

    compute_dtype: torch.dtype | None


@runtime_checkable
class Delivering(Protocol):
    """A task that hands over more than its metrics: tables, figures, the trained model."""

    def deliver_models(
        self, models: Mapping[str, Tree], weights: Mapping[str, float], folder: Path
    ) -> str:
        """Write what a run has learned into `folder`; return a text to print.

        Args:
            models: tensors by name: "reweighted", and "uniform" where one was trained.
            weights: of each domain, as the reweighted model was trained with at the end.
            folder: of the run.
        """
        ...


@runtime_checkable
class Identified(Protocol):
    """A task that knows where its training examples come from: a run then writes weights.parquet.

    Attributes:
        examples: what identifies each training example, n of them; see
            `metaopt.data.weights_file.identify`.
        hashed_columns: the columns that their hashes are over: those a trainer's data have, too.
    """

    examples: Sequence[Example]
    hashed_columns: Sequence[str]


@runtime_checkable
class Texts(Protocol):
    """A task whose training examples are texts: a rater can read them.

    Attributes:
        row_texts: the text of each training example, n of them.
        text_columns: the columns of a file whose texts, joined by newlines, are such a text.
    """

    row_texts: Sequence[str]
    text_columns: Sequence[str]


@runtime_checkable
class Graded(Protocol):
    """A task that knows how good texts are: scores are compared with it.

    Attributes:
        row_quality: of each training example, (n,), larger is better; NaN where nobody knows.
        unseen_texts: texts that nothing is trained on.
        unseen_quality: of each of them.
    """

    row_quality: Tensor
    unseen_texts: Sequence[str]
    unseen_quality: Tensor


def check_task(task: ReweightingTask) -> None:
    """Raise a `ValueError` unless domains, examples and quality fit together."""
    count = len(task.domains)
    if count < 1 or len(set(task.domains)) != count:
        raise ValueError(f"the task needs domains of different names; got {list(task.domains)}.")
    sizes = torch.bincount(task.domain, minlength=count)
    if len(sizes) != count or not bool((sizes > 0).all()):
        empty = [name for name, size in zip(task.domains, sizes, strict=False) if not size]
        raise ValueError(
            f"the domain of a row must be an index below {count}, and no domain may be empty; "
            f"empty: {', '.join(empty) or 'none'}, largest index: {int(task.domain.max())}."
        )
    if isinstance(task, Identified) and len(task.examples) != len(task.domain):
        raise ValueError(
            f"a task identifies each of its training examples; got {len(task.examples)} for "
            f"{len(task.domain)}."
        )
    quality = task.quality
    if quality is not None and (
        quality.shape != (count,) or bool((quality < 0).any()) or not bool(quality.sum() > 0)
    ):
        raise ValueError(
            f"quality must be {count} numbers >= 0, one of them > 0; got {quality.tolist()}."
        )
