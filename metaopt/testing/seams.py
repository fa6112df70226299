"""Where a profile cuts an outer step into parts, and the clock that is read at each cut."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from metaopt.engine import Engine
from metaopt.engine.black_box_loop import BlackBoxLoop
from metaopt.engine.inner_level import InnerLevel
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


START, BATCHES, STEPS = "inner start", "inner batches", "inner steps"
OUTER_BATCHES, OUTER_LOSS = "outer batches", "outer loss"
HYPERGRADIENT, ESTIMATOR, CHECKS = "hypergradient", "estimator", "checks"
ASK, TELL, OTHER = "outer optimizer: ask", "outer optimizer: tell", "other"

ORDER = (
    ASK, START, BATCHES, STEPS, OUTER_BATCHES, OUTER_LOSS, HYPERGRADIENT, ESTIMATOR, CHECKS, TELL,
    OTHER,
)  # fmt: skip
"""Of the parts of an outer step, nearly that in which they run."""

GRADIENT_LOOP = (
    Seam("start", START),
    Seam("batch", BATCHES),
    Seam("run", STEPS, counted=False),
    Seam("step_", STEPS),
    Seam("step", STEPS),
    Seam("step_along", STEPS),
    Seam("outer_batch", OUTER_BATCHES),
    Seam("outer_value", OUTER_LOSS),
)
"""Of `InnerLoop` and of what stacks several: tasks, replicates."""

BLACK_BOX_LOOP = (
    Seam("start", START, opaque=True),
    Seam("run", STEPS, counted=False, opaque=True),
    Seam("evaluate", OUTER_LOSS, opaque=True),
)


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


@contextmanager
def cut_open(engine: Engine, watch: Stopwatch) -> Iterator[None]:
    """Return a block in which the parts of an engine's outer steps are measured.

    For its length the methods of classes are replaced by ones that call them: an estimator makes
    loops of its own for the tasks of a meta-batch. No number of the run changes.
    """
    with ExitStack() as stack:
        for owner, seam in _seams(engine):
            method = vars(owner)[seam.name]
            stack.callback(setattr, owner, seam.name, method)
            setattr(owner, seam.name, _measured(watch, seam, method))
        yield


def _measured(watch: Stopwatch, seam: Seam, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def measured(*args: Any, **kwargs: Any) -> Any:
        return watch.call(seam, method, *args, **kwargs)

    return measured


def _seams(engine: Engine) -> Iterator[tuple[type, Seam]]:
    """Yield the seams of an engine's outer steps, each with the class that has the method."""
    for seam in BLACK_BOX_LOOP:
        yield BlackBoxLoop, seam
    for kind in _with_subclasses(InnerLevel):
        yield from ((kind, seam) for seam in GRADIENT_LOOP if seam.name in vars(kind))
    rest = HYPERGRADIENT if getattr(engine.estimator, "gives_gradient", True) else ESTIMATOR
    of_objects: list[tuple[object, Seam]] = [
        (engine.optimizer, Seam("ask", ASK)),
        (engine.optimizer, Seam("tell", TELL)),
        (engine.estimator, Seam("__call__", rest)),
        (engine.estimator, Seam("check_again", CHECKS, opaque=True)),
    ]
    if isinstance(engine.loop, BlackBoxLoop):
        of_objects.append((engine.problem, Seam("inner_step", STEPS)))
    for part, seam in of_objects:
        owners = (kind for kind in type(part).__mro__ if seam.name in vars(kind))
        if (owner := next(owners, None)) is not None:
            yield owner, seam


def _with_subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(_with_subclasses, kind.__subclasses__()))
