"""TRL's trainers with weights, on the data that TRL's have and a column `weight`."""

from __future__ import annotations

from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from metaopt.trainers.sampling import Resampled
from metaopt.trainers.weighting import Weighted


class WeightedSFTTrainer(Weighted, SFTTrainer):
    """`trl.SFTTrainer` with weights; see `Weighted`. Packing and padding-free are refused."""


class WeightedDPOTrainer(Weighted, DPOTrainer):
    """`trl.DPOTrainer` with a weight for each pair; see `Weighted`. Losses `aot*` are refused."""

    outputs_per_row = 2


class WeightedRewardTrainer(Weighted, RewardTrainer):
    """`trl.RewardTrainer` with a weight for each pair; see `Weighted`."""

    outputs_per_row = 2


class ResampledSFTTrainer(Resampled, SFTTrainer):
    """`trl.SFTTrainer` on rows drawn by their weights; see `Resampled`."""


class ResampledDPOTrainer(Resampled, DPOTrainer):
    """`trl.DPOTrainer` on pairs drawn by their weights; see `Resampled`."""


class ResampledRewardTrainer(Resampled, RewardTrainer):
    """`trl.RewardTrainer` on pairs drawn by their weights; see `Resampled`."""
