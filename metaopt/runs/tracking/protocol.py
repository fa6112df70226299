"""What a tracker is, and metrics as the Python numbers that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from metaopt.engine.inner_progress import Progress

Values = Mapping[str, float | list[float]]
"""Metrics as Python numbers; a list has the value of each replicate."""


class Tracker(Protocol):
    """Takes the scalars of a run; a context manager that closes itself."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics`, by name (`group/name`), of the outer step `step`, >= 0."""
        ...

    def record(self, step: int, values: Values) -> None:
        """Record `values`, of which each seed may have its own; the default logs the means."""
        self.log(step, means(values))

    def follow(self, progress: Progress) -> None:
        """Read, while an outer step lasts, how far its inner run has come; called once."""
        return  # the default: only outer steps are shown

    def conclude(self, result: Mapping[str, Any]) -> None:
        """Take the result of a finished run, as in result.json; what it made is in its folder."""
        return  # the default: only what was logged is shown

    def close(self) -> None:
        """Release what was opened; calling it again does nothing."""
        return  # the default: nothing was opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close()


def values_of(metrics: Mapping[str, float | Tensor | list[float]]) -> Values:
    """Return numbers, also of numpy, and tensors of one element or of shape (R,) as Python's.

    One transfer per device.
    """
    values: dict[str, Any] = {k: v for k, v in metrics.items() if not isinstance(v, Tensor)}
    for name, value in values.items():
        values[name] = value if type(value) in (int, float, list) else float(value)
    tensors = {k: v.detach() for k, v in metrics.items() if isinstance(v, Tensor)}
    for device in {v.device for v in tensors.values()}:
        names = [k for k, v in tensors.items() if v.device == device]
        flat = torch.cat([tensors[k].reshape(-1).double() for k in names])
        parts = flat.split([tensors[k].numel() for k in names])
        for name, part in zip(names, parts, strict=True):
            values[name] = part.tolist() if tensors[name].ndim else part.item()
    return {name: values[name] for name in metrics}


def means(values: Values) -> dict[str, float]:
    """Return numbers as they are, and the mean of those of replicates."""
    return {k: sum(v) / len(v) if isinstance(v, list) else v for k, v in values.items()}


def of_replicates(values: Values) -> dict[str, list[float]]:
    """Return what has a value of each replicate."""
    return {k: v for k, v in values.items() if isinstance(v, list)}
