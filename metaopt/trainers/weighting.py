"""Trainers whose rows count by a weight: the gradient that flows into a row's outputs is scaled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metaopt.data.weights_file import refuse_illegal
from metaopt.trainers.attaching import WEIGHT

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class ReadsWeights(Trainer):
    """A trainer whose training data have a column `weight`; see `Weighted` and `Resampled`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make the trainer; its arguments are those of the class that it is mixed into.

        Raises:
            ValueError: an argument with which weights would be wrong or lost, by name; training
                data without weights, or with one that is negative or not finite.
        """
        given = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        if given.get("args") is not None:
            self.check_arguments(given["args"])
        # Before the data are prepared, which may take long.
        _check_data(given.get("train_dataset"), "train_dataset")
        super().__init__(*args, **kwargs)
        self.check_arguments(self.args)
        _check_data(self.train_dataset, "the prepared training data")

    def check_arguments(self, args: Any) -> None:
        """Raise a `ValueError` where an argument loses the weights or mixes rows."""
        name = type(self).__name__
        for option, value in {"packing": False, "padding_free": False}.items():
            if getattr(args, option, value) != value:
                raise ValueError(
                    f"{name} weighs rows, and {option}=True joins them into sequences without "
                    f"their weights. Set {option}=False."
                )

    def get_train_dataloader(self) -> Any:
        """Return the loader of training batches, with or without the weights of their rows."""
        collator = self.data_collator
        self.data_collator = self.weighted_collator(collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def weighted_collator(self, collator: Any) -> Any:
        """Return what makes a training batch of rows with weights."""
        return Collator(collator, keep=False)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate without weights: evaluation data may have the column, or not."""
        return super().prediction_step(model, without_weights(inputs), *args, **kwargs)


class Weighted(ReadsWeights):
    """Trains with the gradient of (1/B) sum_b w_b l_b, w_b the column `weight` of row b.

    Mix it into a trainer: class WeightedSFTTrainer(Weighted, SFTTrainer). Each loss is a sum of
    functions of one row's outputs, so that scaling the gradient that flows into the outputs of row
    b by w_b gives the gradient of the weighted loss, with the trainer's own code. What a loss
    divides by stays: SFT divides by the tokens of the batch, so that a long row counts more than
    a short one of the same weight, as it does without weights. There is no division by the sum of
    a batch's weights, which would be biased and depend on gradient accumulation.

    **The loss that is logged is that without weights.** So is the load-balancing loss of mixtures
    of experts, which belongs to no row.

    Where a share of the rows below a half counts, `Resampled` wastes fewer forward passes.

    Attributes:
        outputs_per_row: outputs of the model for each row: 2 for a pair, chosen rows first.

    Raises:
        ValueError: see `ReadsWeights`; while training, a batch without weights, or a model whose
            outputs are not by row.
    """

    outputs_per_row = 1

    def check_arguments(self, args: Any) -> None:
        """Refuse what loses weights, mixes rows, or has no outputs by row."""
        super().check_arguments(args)
        name = type(self).__name__
        if getattr(args, "use_liger_kernel", False):
            raise ValueError(
                f"{name} scales the gradient of a model's outputs, and use_liger_kernel=True "
                "computes losses without them. Set use_liger_kernel=False."
            )
        kinds = getattr(args, "loss_type", None) or ()
        sorting = [
            kind for kind in ((kinds,) if isinstance(kinds, str) else kinds) if "aot" in kind
        ]
        if sorting:
            raise ValueError(
                f"{name} needs a loss that is a sum over rows, and loss_type={sorting[0]!r} sorts "
                "the rows of a batch. Use another loss, or Resampled."
            )
        parallel = getattr(args, "parallelism_config", None)
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            raise ValueError(
                f"{name} is not for sequences that are split over processes: their losses are "
                "computed elsewhere. Leave context and sequence parallelism out."
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"{name} does not train with nn.DataParallel, which transformers takes for several "
                "GPUs in one process. Start it by torchrun or accelerate launch."
            )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if WEIGHT not in columns:
            columns.append(WEIGHT)

    def weighted_collator(self, collator: Any) -> Any:
        """Return what makes a training batch of rows, with their weights in it."""
        return Collator(collator, keep=True)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss without weights, with a graph whose gradient is that with weights."""
        if not torch.is_grad_enabled():
            return super().compute_loss(model, without_weights(inputs), *args, **kwargs)
        weights = inputs.get(WEIGHT)
        if weights is None:
            raise ValueError(
                f"a training batch of {type(self).__name__} has no {WEIGHT!r}: what prepares or "
                "collates the data has dropped the column. Attach weights, and keep the column."
            )
        with scaled_gradients(model, weights, self.outputs_per_row) as self._scaled:
            return super().compute_loss(model, without_weights(inputs), *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Take gradients as the trainer does, and see that weights were applied to them."""
        loss = super().training_step(*args, **kwargs)
        if not self._scaled:
            raise ValueError(
                f"{type(self).__name__} has weights without effect: the gradient of the loss does "
                "not pass through the outputs that the model has returned. Compute the loss from "
                "them, as WeightedTrainer does; a loss inside of the model does not in mixed "
                "precision."
            )
        return loss


@contextmanager
def scaled_gradients(model: nn.Module, weights: Tensor, per_row: int = 1) -> Iterator[list[int]]:
    """Scale the gradient into each row's outputs of a model, for the calls within.

    Yields a list that gets an entry whenever a gradient was scaled, in the backward pass. Calls
    without gradients, such as those of a reference model, are left alone.

    Args:
        model: as the trainer calls it: prepared for mixed precision and several processes, which
            may copy its outputs.
        weights: (B,).
        per_row: outputs of each row, one after the other in blocks of B.

    Raises:
        ValueError: outputs that are not by row.
    """
    scaled: list[int] = []
    factors = weights.repeat(per_row)

    def on_outputs(module: nn.Module, args: Any, outputs: Any) -> None:
        values = row_outputs(outputs)
        if values is not None and not values.requires_grad:
            return
        if values is None or len(values) != len(factors):
            what = "none" if values is None else f"{len(values)} of them"
            raise ValueError(
                f"weights need outputs of the model for each row (log_probs or logits), "
                f"{len(factors)} for a batch of {len(weights)} rows; {type(module).__name__} "
                f"returned {what}."
            )

        def scale(grad: Tensor) -> Tensor:
            scaled.append(len(grad))
            shape = (-1,) + (1,) * (grad.ndim - 1)
            return (grad * factors.to(grad.device).view(shape)).to(grad.dtype)

        values.register_hook(scale)

    handle = model.register_forward_hook(on_outputs)
    try:
        yield scaled
    finally:
        handle.remove()


def row_outputs(outputs: Any) -> Tensor | None:
    """Return the outputs of a model that its loss is computed from, row by row."""
    for name in ("log_probs", "logits"):
        values = outputs.get(name) if isinstance(outputs, Mapping) else None
        values = getattr(outputs, name, None) if values is None else values
        if isinstance(values, Tensor):
            return values
    return None


def without_weights(inputs: Any) -> Any:
    """Return a batch without its weights."""
    if not isinstance(inputs, Mapping):
        return inputs
    return type(inputs)({k: v for k, v in inputs.items() if k != WEIGHT})  # type: ignore[call-arg]


class Collator:
    """Collates rows without their weights, which it checks, and adds them where they are used.

    A class of this module, so that the workers of a loader can be sent it.
    """

    def __init__(self, collator: Any, keep: bool) -> None:
        self.collator, self.keep = collator, keep

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Return the batch of rows.

        Raises:
            ValueError: a row without a weight, or with one that is negative or not finite.
        """
        if not all(isinstance(row, Mapping) for row in rows):
            raise ValueError(
                f"weighted rows are {{column: value}}; got a {type(rows[0]).__name__}."
            )
        others = [{k: v for k, v in row.items() if k != WEIGHT} for row in rows]
        batch = self.collator(others)
        if not self.keep:
            return batch
        weights = [float(row[WEIGHT]) for row in rows if row.get(WEIGHT) is not None]
        if len(weights) < len(rows):
            raise ValueError(
                f"{len(rows) - len(weights)} of {len(rows)} rows of a batch have no {WEIGHT!r}. "
                "Attach weights to all rows; packing drops the column."
            )
        refuse_illegal(weights, "a training batch")
        batch[WEIGHT] = torch.tensor(weights)
        return batch


def weights_of(dataset: Any) -> list[Any]:
    """Return the weights of all rows of a data set, `None` for a row without."""
    if hasattr(dataset, "with_format"):
        return list(dataset.with_format(None)[WEIGHT])
    return [row.get(WEIGHT) for row in dataset]


def _check_data(dataset: Any, place: str) -> None:
    """Refuse training data without weights or with illegal ones; of a stream the batches are."""
    names = getattr(dataset, "column_names", None)
    if dataset is None or names is None:
        return
    if isinstance(names, Mapping):
        raise ValueError(f"{place} is a DatasetDict; give one of its splits, {', '.join(names)}.")
    if WEIGHT not in names:
        raise ValueError(
            f"{place} has no column {WEIGHT!r}, but {', '.join(names)}. "
            "metaopt.trainers.attach adds it; packing drops it."
        )
    if hasattr(dataset, "__len__"):
        weights = weights_of(dataset)
        lacking = sum(weight is None for weight in weights)
        if lacking:
            raise ValueError(f"{place}: {lacking} of {len(weights)} rows have no {WEIGHT!r}.")
        refuse_illegal(weights, place)
