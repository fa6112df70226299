"""TensorBoard as a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaopt.runs.tracking.protocol import Tracker
from metaopt.runs.tracking.services import missing


class TensorBoard(Tracker):
    """Event files in `<folder>/tensorboard`, for `tensorboard --logdir <results folder>`.

    Args:
        folder: the run's folder.
        config: taken for the common signature; the folder's config.yaml holds it.
        resume_step: outer step a run continues from; TensorBoard hides what was beyond it.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    package = "tensorboard"

    def __init__(
        self, folder: Path, config: Mapping[str, Any], resume_step: int | None = None
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise missing("tensorboard", error) from error
        purge = None if resume_step is None else resume_step + 1
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending and close the file."""
        self.writer.close()
