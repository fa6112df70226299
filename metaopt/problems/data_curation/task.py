"""A model of transformers trained by one of TRL's losses, as a task of `DomainReweighting`."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from metaopt.data.records import Record, grouped
from metaopt.data.row_texts import joined
from metaopt.data.weights_file import content_hash, identify
from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges
from metaopt.nn.model_card import ModelCard
from metaopt.problems.data_curation.objectives import Objective, sequence_log_probs
from metaopt.problems.data_curation.rows import CurationRows
from metaopt.problems.data_curation.sequences import Batch, Encoded, Sequences

if TYPE_CHECKING:  # it imports transformers
    from metaopt.nn.transformers_model import TransformersModel

MODEL = "model"
"""Folder of a run with the trained model."""

PROBES = 8
"""Meta rows whose losses are compared after the model is read back."""


class TransformersRows:
    """Training and meta examples are rows in TRL's formats, under one loss of a model.

    l_i and m_j are both the loss of `objective`, of a training row and of a meta row.

    Args:
        data: rows by domain, meta rows, held-out rows; see
            `metaopt.problems.data_curation.rows.rows`.
        objective: `SFT`, `DPO`, `Reward` or `ProcessReward`.
        model: makes the model; `TransformersModel` without its first two arguments.
        strict: refuse rows that cannot be trained on; else leave them out, with a warning.
        evaluation_batch: rows in a forward pass where nothing is trained, >= 1.
        save_model: write the trained model at the run's end.
        device: where rows and model live.

    Attributes:
        domains, domain, meta_rows, quality, resplit: see `ReweightingTask`.
        examples, hashed_columns: see `Identified`.
        row_texts, text_columns: see `Texts`.
        compute_dtype: see `Autocast`.

    Raises:
        ValueError: names the argument, or the file and row, and what is legal.

    Example:
        >>> from functools import partial
        >>> from metaopt.problems.data_curation import SFT, TransformersRows
        >>> from metaopt.nn.transformers_model import TransformersModel
        >>> from metaopt.problems.data_curation.rows import rows
        >>> row = {"prompt": "one and one are", "completion": " two"}
        >>> gpt2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}
        >>> model = partial(TransformersModel, source=gpt2)
        >>> task = TransformersRows(rows({"sums": [row] * 2}, meta=[row]), SFT(), model)
        >>> params, buffers = task.init(torch.Generator())
        >>> task.row_losses(params, torch.tensor([0, 1])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        data: CurationRows,
        objective: Objective,
        model: Callable[..., TransformersModel],
        strict: bool = True,
        evaluation_batch: int = 32,
        save_model: bool = True,
        device: str = "cpu",
    ) -> None:
        self.objective, self.evaluation_batch = objective, evaluation_batch
        self.save_model, self.device = save_model, torch.device(device)
        check_ranges(self, "evaluation_batch >= 1")
        self.model = model(objective.kind, _texts(data.train), device=device)
        self.compute_dtype = self.model.compute_dtype
        training, indices = self._encode("train", data.train, strict)
        self._training, self._meta, self._held_out = (
            training,
            *(
                self._encode(name, part, strict)[0]
                for name, part in (("meta", data.meta), ("held_out", data.held_out))
            ),
        )
        domain = [data.domain[i] for i in indices]
        self.domains = tuple(dict.fromkeys(domain))
        self.domain = torch.tensor([self.domains.index(name) for name in domain])
        self.meta_rows = len(self._meta)
        self.quality: Tensor | None = None
        self.resplit = 0.0
        records = [data.train[i] for i in indices]
        present = {name for r in records for name, v in r.value.items() if v is not None}
        self.hashed_columns = tuple(name for name in objective.columns if name in present)
        self.examples = identify(records, self.hashed_columns)
        self._records = records
        self._warn_of_leaks(data)

    @property
    def text_columns(self) -> Sequence[str]:
        """The columns that a rater reads."""
        return self.hashed_columns

    @cached_property
    def row_texts(self) -> Sequence[str]:
        """The text of each training row, as a rater reads it; see `Texts` there."""
        return [joined(record.value, self.text_columns) for record in self._records]

    def init(self, generator: Generator) -> tuple[Tree, Tree]:
        """Return what is trained, as it is before training, and no buffers."""
        return self.model.init(), {}

    def row_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the loss of each training row, (B,)."""
        return self._losses(tensors, self._training.take(rows.cpu()), train)

    def meta_losses(self, tensors: Tree, rows: Tensor, train: bool = True) -> Tensor:
        """Return the loss of each meta row, (B,)."""
        return self._losses(tensors, self._meta.take(rows.cpu()), train)

    @torch.no_grad()
    def metrics(self, tensors: Tree) -> Mapping[str, float | Tensor]:
        """Return the mean loss of held-out rows, and the share of right predictions.

        That is `token_accuracy` (of completion tokens), `reward_accuracy` (of pairs) or
        `step_accuracy`. Empty without held-out rows.
        """
        if not len(self._held_out):
            return {}
        parts = []
        for batch in self._batches(self._held_out):
            logits = self.model.logits(tensors, batch.inputs, False)
            losses = self.objective.losses(logits, batch)
            parts.append(torch.stack([losses, *self.objective.correct(logits, batch)]))
        losses, right, count = torch.cat(parts, 1)
        return {"loss": losses.mean(), self.objective.accuracy: right.sum() / count.sum()}

    def deliver_models(
        self, models: Mapping[str, Tree], weights: Mapping[str, float], folder: Path
    ) -> str:
        """Write the reweighted model as a folder that transformers loads; return where it is."""
        from metaopt.problems.data_curation.export import export

        if not self.save_model:
            return ""
        tensors, path = models["reweighted"], folder / MODEL
        if path.exists():  # of a run that was stopped while it wrote
            shutil.rmtree(path)
        figures = {name: float(value) for name, value in self.metrics(tensors).items()}
        if not figures:
            rows = torch.arange(self.meta_rows)[: self.evaluation_batch]
            loss = self.meta_losses(tensors, rows, train=False).mean()
            figures = {"meta-loss, which was trained for; there are no held-out rows": float(loss)}
        lines = (f"| {name} | {value:.3f} |" for name, value in weights.items())
        card = ModelCard(
            f"{len(self.domain)} training rows of {len(self.domains)} domains, weighted by "
            f"{self.meta_rows} meta rows; {len(self._held_out)} held-out rows.",
            figures,
            base=self.model.origin.base,
            licence=self.model.origin.licence,
            notes="\n".join(["| domain | weight in training |", "|---|---|", *lines]),
        )
        probes = self._meta.take(torch.arange(min(PROBES, self.meta_rows)))
        name, difference = export(self.model, tensors, path, card, self.objective, probes)
        return f"{name} in {path}, read back: losses differ by at most {difference:.1g}"

    def _losses(self, tensors: Tree, batch: Batch, train: bool) -> Tensor:
        return self.objective.losses(self.model.logits(tensors, batch.inputs, train), batch)

    def _batches(self, rows: Sequences) -> Iterator[Batch]:
        for part in torch.arange(len(rows)).split(self.evaluation_batch):
            yield rows.take(part)

    def _encode(
        self, name: str, records: Sequence[Record], strict: bool
    ) -> tuple[Sequences, list[int]]:
        """Return the rows that can be trained on, and which they are."""
        encoded: list[Encoded] = []
        kept: list[int] = []
        wrong: list[tuple[str, str]] = []
        for i, record in enumerate(records):
            try:
                row = self.objective.encode(self.model.tokenizer, record.value)
                self.model.check_room(max(map(len, row.ids)))
                encoded.append(row)
                kept.append(i)
            except ValueError as error:
                wrong.append((record.place, str(error)))
        if wrong and (strict or not kept):
            raise ValueError(
                f"{name}: {len(wrong)} of {len(records)} rows cannot be trained on:{grouped(wrong)}"
            )
        if wrong:
            warnings.warn(
                f"{name}: {len(wrong)} of {len(records)} rows are left out:{grouped(wrong)}",
                stacklevel=3,
            )
        rows = Sequences(encoded, self.model.pad, self.device)
        if self.objective.reads_reference and len(rows):
            rows.reference = self._reference(rows)
        return rows, kept

    @torch.no_grad()
    def _reference(self, rows: Sequences) -> Tensor:
        """Return the log-probabilities of the completions before training, (n, S)."""
        start = self.model.init()
        parts = [
            sequence_log_probs(self.model.logits(start, batch.inputs, False), batch)
            for batch in self._batches(rows)
        ]
        return torch.cat(parts)

    def _warn_of_leaks(self, data: CurationRows) -> None:
        """Warn about held-out rows that a level trains on."""
        columns = self.hashed_columns
        trained = {example.hash for example in self.examples}
        trained |= {content_hash(r.value, columns) for r in data.meta}
        again = [r.place for r in data.held_out if content_hash(r.value, columns) in trained]
        if again:
            warnings.warn(
                f"held_out: {len(again)} of {len(data.held_out)} rows are training or meta rows as "
                f"well, the first is {again[0]}: figures on them are too good.",
                stacklevel=3,
            )


def _texts(records: Sequence[Record]) -> Iterator[str]:
    """Yield every text in the rows, for the tokenizer of words."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from (text for item in value.values() for text in inside(item))
        elif isinstance(value, (list, tuple)):
            yield from (text for item in value for text in inside(item))

    return (text for record in records for text in inside(record.value))
