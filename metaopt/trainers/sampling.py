"""Rows drawn as often as they count, in place of gradients that are scaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from metaopt.data.weights_file import refuse_illegal
from metaopt.engine.random import fold, generator
from metaopt.trainers.weighting import ReadsWeights, Weighted, weights_of


class WeightedSampler(Sampler[int]):
    """Draws n rows an epoch with replacement, each with a probability in proportion to its weight.

    An epoch's draw is a function of seed and epoch alone: every process of several draws the same,
    and a run that is resumed goes on with the rows that it would have had.

    Args:
        weights: of all rows, >= 0, one of them > 0.
        seed: another seed draws other rows.
    """

    def __init__(self, weights: Sequence[float], seed: int = 0) -> None:
        refuse_illegal(weights, "WeightedSampler")
        self.weights = torch.tensor(weights, dtype=torch.float64)
        if not bool(self.weights.sum() > 0):
            raise ValueError("WeightedSampler needs a row with a weight above 0.")
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is drawn next; trainers call it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[int]:
        draw = generator(fold(self.seed, self.epoch, "weighted sampler"))
        # By inversion: torch.multinomial takes at most 2^24 rows.
        places = torch.rand(len(self), generator=draw, dtype=torch.float64)
        edges = self.weights.cumsum(0)
        rows = torch.searchsorted(edges, places * edges[-1], right=True)
        # Rounding may reach the end; rows of weight 0 behind the last of another are never drawn.
        yield from rows.clamp(max=int(self.weights.nonzero()[-1])).tolist()


class Resampled(ReadsWeights):
    """Trains on rows drawn in proportion to the column `weight`, with replacement.

    Mix it into a trainer: class ResampledSFTTrainer(Resampled, SFTTrainer). The expected gradient
    is that of `Weighted`, with more variance where rows of small weight are cheap to keep, and with
    no forward pass for rows of weight 0. Losses that are no sum over rows are legal. An epoch has
    as many rows as the data, and the loss that is logged is that of the rows drawn.

    Raises:
        ValueError: see `ReadsWeights`; a train_sampling_strategy other than random; a stream.
        TypeError: a class that is `Weighted`, too, and would apply weights twice.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, Weighted):
            raise TypeError(f"{cls.__name__} is Weighted and Resampled: weights would count twice.")

    def check_arguments(self, args: Any) -> None:
        """Refuse what loses weights, and another order of rows."""
        super().check_arguments(args)
        strategy = getattr(args, "train_sampling_strategy", "random")
        if strategy != "random":
            raise ValueError(
                f"{type(self).__name__} draws rows by their weights; "
                f"train_sampling_strategy={strategy!r} orders them otherwise. Set random."
            )

    def get_train_dataloader(self) -> Any:
        """Return the loader of training batches, of rows drawn by their weights.

        Raises:
            ValueError: the trainer has drawn them otherwise: of a stream, or because it asks
                another method than `_get_train_sampler`, which is private to transformers.
        """
        self._sampler: WeightedSampler | None = None
        loader = super().get_train_dataloader()
        if self._sampler is None:
            raise ValueError(
                f"{type(self).__name__} draws rows by their weights, and this trainer has taken "
                f"another order for {type(self.train_dataset).__name__}. Of a stream of rows use "
                "Weighted; of a datasets.Dataset, a version of transformers that is supported."
            )
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        # The data that are given have lost the column: no model takes it.
        self._sampler = WeightedSampler(weights_of(self.train_dataset), seed)
        return self._sampler
