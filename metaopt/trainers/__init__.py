"""What a run has learned about training data, in the trainers of transformers and TRL.

`attach` joins the weights of a run's `weights.parquet` to a data set; a trainer with `Weighted` in
front of it trains with them, one with `Resampled` draws rows by them. Reading order: `attaching`,
`weighting` (the gradient of a weighted loss by the trainer's own code), `sampling`,
`transformers_trainers`, `trl_trainers` (needs the extra `trl`). Names are imported when they are
used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaopt.trainers.attaching import attach
    from metaopt.trainers.sampling import Resampled, WeightedSampler
    from metaopt.trainers.transformers_trainers import (
        ResampledTrainer,
        WeightedProcessRewardTrainer,
        WeightedTrainer,
    )
    from metaopt.trainers.trl_trainers import (
        ResampledDPOTrainer,
        ResampledRewardTrainer,
        ResampledSFTTrainer,
        WeightedDPOTrainer,
        WeightedRewardTrainer,
        WeightedSFTTrainer,
    )
    from metaopt.trainers.weighting import Weighted

MODULES = {
    "attaching": ("attach",),
    "sampling": ("Resampled", "WeightedSampler"),
    "transformers_trainers": (
        "ResampledTrainer", "WeightedProcessRewardTrainer", "WeightedTrainer",
    ),
    "trl_trainers": (
        "ResampledDPOTrainer", "ResampledRewardTrainer", "ResampledSFTTrainer",
        "WeightedDPOTrainer", "WeightedRewardTrainer", "WeightedSFTTrainer",
    ),
    "weighting": ("Weighted",),
}  # fmt: skip

__all__ = [
    "Resampled",
    "ResampledDPOTrainer",
    "ResampledRewardTrainer",
    "ResampledSFTTrainer",
    "ResampledTrainer",
    "Weighted",
    "WeightedDPOTrainer",
    "WeightedProcessRewardTrainer",
    "WeightedRewardTrainer",
    "WeightedSFTTrainer",
    "WeightedSampler",
    "WeightedTrainer",
    "attach",
]


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            try:
                return getattr(import_module(f"{__name__}.{module}"), name)
            except ModuleNotFoundError as error:
                if error.name in ("trl", "accelerate"):
                    raise ModuleNotFoundError(
                        f"{name} needs {error.name}: install metaopt[trl] (Python 3.11 or later).",
                        name=error.name,
                    ) from error
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
