"""Where a profile cuts an outer step into parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from metaopt.engine import Engine
from metaopt.engine.black_box_loop import BlackBoxLoop
from metaopt.engine.inner_level import InnerLevel
from metaopt.testing.stopwatch import Seam, Stopwatch

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
    gives_gradient = getattr(engine.estimator, "gives_gradient", True)
    of_objects: list[tuple[object, Seam]] = [
        (engine.optimizer, Seam("ask", ASK)),
        (engine.optimizer, Seam("tell", TELL)),
        (engine.estimator, Seam("__call__", HYPERGRADIENT if gives_gradient else ESTIMATOR)),
    ]
    if gives_gradient:
        of_objects.append((engine.estimator, Seam("check_again", CHECKS, opaque=True)))
    if isinstance(engine.loop, BlackBoxLoop):
        of_objects.append((engine.problem, Seam("inner_step", STEPS)))
    for part, seam in of_objects:
        owners = (kind for kind in type(part).__mro__ if seam.name in vars(kind))
        if (owner := next(owners, None)) is not None:
            yield owner, seam


def _with_subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(_with_subclasses, kind.__subclasses__()))
