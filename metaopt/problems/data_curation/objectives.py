"""The losses of TRL's trainers, and of a token classifier, as one loss for each row.

Each is that of the trainer's `compute_loss` on a batch of that row alone. On a batch, DPO and the
reward model average over rows as here; SFT and token classification average over all tokens of the
batch, so that long rows count more there.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.problems.data_curation import trl_rows
from metaopt.problems.data_curation.sequences import (
    IGNORED,
    TRUNCATIONS,
    Batch,
    Encoded,
    completed,
    cut,
    step_ids,
    whole_ids,
)

Kind = Literal["causal", "sequence", "token"]
NOTHING_LEFT = (
    "keeps nothing of its completion within max_length={limit}; raise it, set truncation=keep_end, "
    "or leave such rows out by strict=false; got {tokens} tokens, {prompt} of them of the prompt"
)


class Objective(Protocol):
    """A loss of rows under a transformers model.

    Attributes:
        kind: of the model: causal; or a classifier of the sequence with one output, or of tokens
            with two.
        columns: of the rows, which identify a row.
        accuracy: name of the metric that is the mean of `correct`.
        reads_reference: whether the loss needs log-probabilities under the untrained model.
    """

    kind: Kind
    columns: tuple[str, ...]
    accuracy: str
    reads_reference: bool

    def encode(self, tokenizer: Any, row: Any) -> Encoded:
        """Return a row {column: value} as token ids; a `ValueError` says what is wrong with it."""
        ...

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each row, (B,), from the model's logits (B S, ...)."""
        ...

    def correct(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return how many of how many predictions of each row are right, (B,) each."""
        ...


def label_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each label, 0 where it is ignored, in at least float32.

    Args:
        logits: (..., T, V).
        labels: (..., T).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    chosen = labels.clamp(min=0)[..., None]
    # Not by log_softmax, which would keep all of its values for the derivative.
    log_probs = logits.gather(-1, chosen).squeeze(-1) - logits.logsumexp(-1)
    return log_probs.masked_fill(labels == IGNORED, 0)


def completion_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each label given the tokens before it, (..., T - 1)."""
    return label_log_probs(logits[..., :-1, :], labels[..., 1:])


def hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many labels (B, T) are the likeliest class, and how many there are, (B,) each."""
    known = labels != IGNORED
    return ((logits.argmax(-1) == labels) & known).sum(-1), known.sum(-1)


class SFT:
    """l = mean over completion tokens of -log p(token | tokens before it).

    Rows: prompt and completion (texts or messages), or messages, or text; of the latter two every
    token is trained on, as by `trl.SFTTrainer` at its defaults.

    Args:
        max_length: most tokens of a row, >= 2, or `None`.
        truncation: which tokens of a longer row are kept: keep_start or keep_end.
    """

    kind: Kind = "causal"
    columns: tuple[str, ...] = ("prompt", "completion", "messages", "conversations", "text")
    accuracy = "token_accuracy"
    reads_reference = False

    def __init__(self, max_length: int | None = None, truncation: str = "keep_start") -> None:
        self.max_length, self.truncation = max_length, truncation
        check_choices(self, truncation=TRUNCATIONS)
        check_ranges(self, "max_length >= 2 or null")

    def encode(self, tokenizer: Any, row: Any) -> Encoded:
        """See `Objective.encode`."""
        prompt, (completion,) = completed(tokenizer, trl_rows.demonstration(row))
        ids, labels = prompt + completion, [IGNORED] * len(prompt) + completion
        return _fitting([ids], [labels], len(prompt), self.max_length, self.truncation)

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `Objective.losses`."""
        labels = batch.labels[:, 0]
        count = (labels[:, 1:] != IGNORED).sum(-1)
        return -completion_log_probs(logits, labels).sum(-1) / count

    def correct(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Objective.correct`."""
        return hits(logits[:, :-1], batch.labels[:, 0, 1:])


class DPO:
    """l = -log sigma(beta (h(chosen) - h(rejected))),  h(y) = log p(y | x) - log p_ref(y | x).

    p_ref is the model before training; its log-probabilities are computed once. Rows: chosen and
    rejected, with a prompt or with one that they have in common.

    Args:
        beta: > 0.
        max_length, truncation: see `SFT`.

    Reference: Rafailov et al., Direct Preference Optimization, NeurIPS 2023.
    """

    kind: Kind = "causal"
    columns: tuple[str, ...] = ("prompt", "chosen", "rejected")
    accuracy = "reward_accuracy"
    reads_reference = True

    def __init__(
        self, beta: float = 0.1, max_length: int | None = None, truncation: str = "keep_start"
    ) -> None:
        self.beta, self.max_length, self.truncation = beta, max_length, truncation
        check_choices(self, truncation=TRUNCATIONS)
        check_ranges(self, "beta > 0", "max_length >= 2 or null")

    def encode(self, tokenizer: Any, row: Any) -> Encoded:
        """See `Objective.encode`."""
        pair = trl_rows.with_prompt(trl_rows.preference(row))
        prompt, answers = completed(tokenizer, pair)
        ids = [prompt + answer for answer in answers]
        labels = [[IGNORED] * len(prompt) + answer for answer in answers]
        return _fitting(ids, labels, len(prompt), self.max_length, self.truncation)

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `Objective.losses`."""
        return -logsigmoid(self.beta * self._margins(logits, batch))

    def correct(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Objective.correct`."""
        margins = self._margins(logits, batch)
        return (margins > 0).long(), torch.ones_like(margins, dtype=torch.long)

    def _margins(self, logits: Tensor, batch: Batch) -> Tensor:
        assert batch.reference is not None
        ratios = sequence_log_probs(logits, batch) - batch.reference
        return ratios[:, 0] - ratios[:, 1]


class Reward:
    """l = -log sigma(r(chosen) - r(rejected) - margin) + c (r(chosen) + r(rejected))^2.

    Rows: chosen and rejected, with a prompt or without one, and a margin or none.

    Args:
        center_rewards: c, >= 0.
        max_length: most tokens of an answer with its prompt, >= 1, or `None`; nothing is cut, as by
            `trl.RewardTrainer`, since the answer stands at the end.

    References: Bradley and Terry, Biometrika 1952; Eisenstein et al., Helping or Herding, 2023
    (centring).
    """

    kind: Kind = "sequence"
    columns: tuple[str, ...] = ("prompt", "chosen", "rejected")
    accuracy = "reward_accuracy"
    reads_reference = False

    def __init__(self, center_rewards: float = 0.0, max_length: int | None = None) -> None:
        self.center_rewards, self.max_length = center_rewards, max_length
        check_ranges(self, "center_rewards >= 0", "max_length >= 1 or null")

    def encode(self, tokenizer: Any, row: Any) -> Encoded:
        """See `Objective.encode`."""
        pair = trl_rows.preference(row)
        ids = whole_ids(tokenizer, pair)
        longest = max(map(len, ids))
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"is longer than max_length={self.max_length}; raise it, or leave such rows out by "
                f"strict=false, as TRL does; got {longest} tokens"
            )
        return Encoded(tuple(ids), tuple([IGNORED] * len(row) for row in ids), pair.margin)

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `Objective.losses`."""
        chosen, rejected = _rewards(logits)
        margin = batch.margin.to(chosen.dtype)
        losses = -logsigmoid(chosen - rejected - margin)
        return losses + self.center_rewards * (chosen + rejected).square()

    def correct(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Objective.correct`."""
        chosen, rejected = _rewards(logits)
        return (chosen > rejected).long(), torch.ones_like(chosen, dtype=torch.long)


class ProcessReward:
    """l = mean over steps of -log p(label), the class of the token at which the step ends.

    Rows: prompt, completions (steps) and labels (whether each is right). Tokens are those of TRL's
    PRM trainer (until version 1.15), see `step_ids`. Class 1 is a right step.

    Args:
        separator: text after each step.
        max_length: most tokens of a row, >= 1, or `None`; steps beyond it are cut off.

    Reference: Lightman et al., Let's Verify Step by Step, ICLR 2024.
    """

    kind: Kind = "token"
    columns: tuple[str, ...] = ("prompt", "completions", "labels")
    accuracy = "step_accuracy"
    reads_reference = False

    def __init__(self, separator: str = "\n", max_length: int | None = None) -> None:
        self.separator, self.max_length = separator, max_length
        check_ranges(self, "max_length >= 1 or null")

    def encode(self, tokenizer: Any, row: Any) -> Encoded:
        """See `Objective.encode`."""
        ids, labels = step_ids(tokenizer, trl_rows.labelled_steps(row), self.separator)
        first = 1 + next(i for i, label in enumerate(labels) if label != IGNORED)
        ids, labels = cut(ids, labels, self.max_length, "keep_start")
        if len(labels) < first:
            raise ValueError(
                f"keeps no step within max_length={self.max_length}; raise it, or leave such rows "
                f"out by strict=false; got a first step that ends after {first} tokens"
            )
        return Encoded((ids,), (labels,))

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `Objective.losses`."""
        labels = batch.labels[:, 0]
        return -label_log_probs(logits, labels).sum(-1) / (labels != IGNORED).sum(-1)

    def correct(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Objective.correct`."""
        return hits(logits, batch.labels[:, 0])


def sequence_log_probs(logits: Tensor, batch: Batch) -> Tensor:
    """Return the log-probability of each sequence's completion, (B, S)."""
    labels = batch.labels.flatten(0, 1)
    return completion_log_probs(logits, labels).sum(-1).view(batch.labels.shape[:2])


def _rewards(logits: Tensor) -> tuple[Tensor, Tensor]:
    values = logits if logits.dtype == torch.float64 else logits.float()
    chosen, rejected = values.view(-1, 2).unbind(-1)
    return chosen, rejected


def _fitting(
    ids: list[list[int]],
    labels: list[list[int]],
    prompt: int,
    max_length: int | None,
    truncation: str,
) -> Encoded:
    """Return sequences cut to `max_length`, each with a token that can be predicted."""
    pairs = [cut(*pair, max_length, truncation) for pair in zip(ids, labels, strict=True)]
    for whole, (_, targets) in zip(ids, pairs, strict=True):
        if all(label == IGNORED for label in targets[1:]):
            if max_length is not None and len(whole) > max_length:
                raise ValueError(
                    NOTHING_LEFT.format(tokens=len(whole), prompt=prompt, limit=max_length)
                )
            raise ValueError(
                f"has no token to predict, since the first one has none before it; got "
                f"{len(whole)} tokens"
            )
    return Encoded(tuple(x for x, _ in pairs), tuple(y for _, y in pairs))
