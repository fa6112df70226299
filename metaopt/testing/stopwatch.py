"""The clock of a profile: it is read where a part of an outer step begins or ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from metaopt.testing.meter import PeakMemory


class Seam(NamedTuple):
    """A method whose calls are a part of the outer step.

    Args:
        name: of the method.
        part: what its time counts as, without that of other parts inside it.
        counted: whether its calls are those of the part, unless they are inside another such call.
        opaque: whether the parts inside it count as this one.
    """

    name: str
    part: str
    counted: bool = True
    opaque: bool = False


@dataclass
class Sum:
    """What was measured of a part, all of its calls together.

    Args:
        calls: how many.
        seconds, cpu_seconds: spent in it, without other parts inside it.
        peak_bytes: the highest peak of memory while it ran; `None` where it was not measured.
    """

    calls: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int | None = None


class _Frame(NamedTuple):
    part: str
    counting: bool
    opaque: bool


class Stopwatch:
    """Adds the time between two cuts to the part that ran.

    Args:
        device: where the run's tensors live; a GPU is waited for at each cut.

    Attributes:
        sums: what was measured, by part.
        meter: counts tensor storage where it is set; on a GPU its allocator does.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.sums: dict[str, Sum] = {}
        self.meter: PeakMemory | None = None
        self._frames: list[_Frame] = []
        self._thread = threading.get_ident()
        self._last = (0.0, 0.0)

    @contextmanager
    def measuring(self, part: str) -> Iterator[None]:
        """Return a block that is measured: what is in no other part counts as this one."""
        with self._inside(Seam("", part)):
            yield

    def call(self, seam: Seam, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what a function returns; its time is that of the part of a seam."""
        # Other threads run at the same time as this one, whose time is counted already.
        if not self._frames or threading.get_ident() != self._thread:
            return function(*args, **kwargs)
        top = self._frames[-1]
        if top.opaque and top.part != seam.part:
            return function(*args, **kwargs)
        with self._inside(seam):
            return function(*args, **kwargs)

    @contextmanager
    def _inside(self, seam: Seam) -> Iterator[None]:
        top = self._frames[-1] if self._frames else _Frame("", False, False)
        same = top.part == seam.part
        counting, opaque = same and top.counting, seam.opaque or (same and top.opaque)
        total = self.sums.setdefault(seam.part, Sum())
        total.calls += seam.counted and not counting
        if not same:
            self._cut()
        self._frames.append(_Frame(seam.part, seam.counted or counting, opaque))
        try:
            yield
        finally:
            if not same:
                self._cut()
            self._frames.pop()

    def _cut(self) -> None:
        """End what the innermost part was doing."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.device)
        now = (time.perf_counter(), time.process_time())
        peak = None if self.meter is None else self.meter.restart()
        if cuda:
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        if self._frames:
            total = self.sums[self._frames[-1].part]
            total.seconds += now[0] - self._last[0]
            total.cpu_seconds += now[1] - self._last[1]
            if peak is not None:
                total.peak_bytes = max(peak, total.peak_bytes or 0)
        self._last = now
