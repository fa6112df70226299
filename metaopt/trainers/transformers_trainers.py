"""Weighted trainers of transformers: any model with a usual loss, and process reward models."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers import DataCollatorForTokenClassification, Trainer

from metaopt.problems.data_curation.sequences import IGNORED, step_ids
from metaopt.problems.data_curation.trl_rows import labelled_steps
from metaopt.trainers.sampling import Resampled
from metaopt.trainers.weighting import Weighted

TARGETS = "token_labels"
"""Column of the labels of tokens, until it takes the place of those of steps."""


class WeightedTrainer(Weighted, Trainer):
    """`transformers.Trainer` with weights; see `Weighted`.

    The loss is computed outside of the model, from its outputs: a model's own loss sees other
    tensors than those that a prepared model returns in mixed precision, and would stay unweighted
    without a word. It is the same loss, of causal and masked language models and of classifiers of
    tokens and sequences. A `compute_loss_func` of the user's replaces it, which must be a sum of
    functions of one row's outputs.

    Under gradient accumulation a classifier's loss is the mean over all labels of an optimizer
    step, as that of a language model is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make the trainer; see `transformers.Trainer`."""
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is None and self.label_smoother is None:
            self.compute_loss_func = outer_loss(self.model)


class ResampledTrainer(Resampled, Trainer):
    """`transformers.Trainer` on rows drawn by their weights; see `Resampled`."""


def outer_loss(model: Any) -> Any:
    """Return a `compute_loss_func` that is a model's own loss, from its logits.

    Raises:
        ValueError: a model whose loss is not known to be that of its logits alone.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind, config = getattr(inner, "loss_type", None), getattr(inner, "config", None)
    if kind not in LOSSES or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"the loss of {type(inner).__name__} cannot be computed outside of the model. Give "
            "compute_loss_func=..., a function of (outputs, labels, num_items_in_batch)."
        )

    def loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        if labels is None:
            raise ValueError("weighted rows need a batch with 'labels' to compute the loss from.")
        return LOSSES[kind](inner, outputs, labels, num_items_in_batch)

    return loss


def _language_model_loss(
    model: Any, outputs: Any, labels: Tensor, num_items_in_batch: Any = None
) -> Tensor:
    size = model.config.get_text_config().vocab_size
    loss: Tensor = model.loss_function(
        logits=outputs.logits, labels=labels, vocab_size=size, num_items_in_batch=num_items_in_batch
    )
    if getattr(outputs, "aux_loss", None) is not None:
        loss = loss + model.router_aux_loss_coef * outputs.aux_loss.to(loss.device)
    return loss


def _token_loss(model: Any, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    loss = model.loss_function(outputs.logits, labels, model.config)
    return _share(loss, labels, num_items_in_batch)


def _sequence_loss(
    model: Any, outputs: Any, labels: Tensor, num_items_in_batch: Any = None
) -> Tensor:
    logits = outputs.logits
    loss = model.loss_function(labels=labels, pooled_logits=logits, config=model.config)
    return _share(loss, labels, num_items_in_batch)


def _share(loss: Tensor, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """Return what a batch's mean adds to the mean over the batches of an optimizer step."""
    if num_items_in_batch is None:
        return loss
    share: Tensor = (labels != IGNORED).sum() / num_items_in_batch
    return loss * share


LOSSES = {
    "ForCausalLM": _language_model_loss,
    "ForMaskedLM": _language_model_loss,
    "ForTokenClassification": _token_loss,
    "ForSequenceClassification": _sequence_loss,
}
"""Losses by the name that transformers has for them."""


class WeightedProcessRewardTrainer(WeightedTrainer):
    """Trains a token classifier to tell right steps from wrong ones, by TRL's stepwise rows.

    A row has `prompt`, `completions` (the steps), `labels` (a boolean for each) and `weight`. The
    label of a step stands at its last token, that of the separator; the loss is the cross-entropy
    of these tokens. It takes the place of TRL's PRMTrainer, which was removed in 2026.

    Args:
        model: of `AutoModelForTokenClassification`, with two labels: 1 is right.
        processing_class: the tokenizer, needed.
        step_separator: text that ends each step.
        max_length: most tokens of a row, the first ones are kept; `None` keeps all. Rows that are
            left without a label are left out, with a warning that counts them.
        args, kwargs: see `transformers.Trainer`.

    Raises:
        ValueError: another model, or rows of another kind.

    Reference: Uesato et al., Solving math word problems with process- and outcome-based feedback,
    2022.
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        train_dataset: Any,
        processing_class: Any,
        eval_dataset: Any = None,
        step_separator: str = "\n",
        max_length: int | None = 1024,
        **kwargs: Any,
    ) -> None:
        if getattr(model.config, "num_labels", None) != 2:
            raise ValueError(
                f"a process reward model tells 2 labels apart; {type(model).__name__} has "
                f"num_labels={getattr(model.config, 'num_labels', None)}."
            )
        encode = partial(
            encode_steps, tokenizer=processing_class, separator=step_separator, limit=max_length
        )
        collator = DataCollatorForTokenClassification(processing_class)
        kwargs = {"data_collator": collator} | kwargs
        super().__init__(
            model,
            args,
            train_dataset=_encoded(train_dataset, encode),
            eval_dataset=None if eval_dataset is None else _encoded(eval_dataset, encode),
            processing_class=processing_class,
            **kwargs,
        )


def encode_steps(row: Any, tokenizer: Any, separator: str, limit: int | None) -> dict[str, Any]:
    """Return {input_ids, token_labels} of a stepwise row; labels stand at the ends of steps."""
    ids, labels = step_ids(tokenizer, labelled_steps(row), separator)
    return {"input_ids": ids[:limit], TARGETS: labels[:limit]}


def _encoded(dataset: Any, encode: Any) -> Any:
    """Return rows as tokens; rows whose labels are all cut off are left out."""
    if isinstance(dataset, dict):
        return type(dataset)({name: _encoded(part, encode) for name, part in dataset.items()})
    # Under a new name, since a column keeps its type: booleans, to which -100 is true.
    rows = dataset.map(encode, remove_columns=["prompt", "completions", "labels"])
    rows = rows.rename_column(TARGETS, "labels")
    labelled = rows.filter(lambda row: any(label != IGNORED for label in row["labels"]))
    if hasattr(rows, "__len__") and len(labelled) < len(rows):
        import warnings

        warnings.warn(
            f"{len(rows) - len(labelled)} of {len(rows)} rows have no label within max_length and "
            "are left out.",
            stacklevel=3,
        )
    return labelled
