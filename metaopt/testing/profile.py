"""Seconds and memory of an engine's outer steps, by their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from metaopt.engine import Engine
from metaopt.estimators.path_check import looks_again
from metaopt.files.tensors import write_tensors
from metaopt.testing.meter import PeakMemory
from metaopt.testing.seams import CHECKS, ORDER, OTHER, cut_open
from metaopt.testing.stopwatch import Stopwatch, Sum

EVALUATION, CHECKPOINT = "evaluation", "checkpoint"


@dataclass(frozen=True)
class Part:
    """What a part costs per outer step, without other parts inside it.

    Args:
        name: of the part; see `profile`.
        calls: per outer step.
        seconds: of wall-clock time per outer step.
        cpu_seconds: of all threads of the process, per outer step.
        peak_bytes: most bytes of tensor storage that were made in one outer step (one
            call, of evaluation and checkpoint) and alive while the part ran; on a CUDA device,
            most bytes that torch had allocated while it ran, with parameters and data. `None`: not
            measured.
    """

    name: str
    calls: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Profile:
    """What an outer step of a run costs.

    Args:
        parts: of the outer step; checks, evaluation and checkpoint by their frequency in the run.
        steps: outer steps that were timed; fewer than asked for where the run was stopped.
        stopped: what stopped it, or `None`.
        warm: what the outer steps before those cost together, without parts.
        checkpoint_bytes: size of a checkpoint's file.
    """

    parts: tuple[Part, ...]
    steps: int
    stopped: str | None
    warm: Sum
    checkpoint_bytes: int

    @property
    def seconds(self) -> float:
        """Seconds per outer step: the sum of the parts."""
        return sum(part.seconds for part in self.parts)


def profile(
    engine: Engine, steps: int = 10, *, warm_steps: int = 2, device: str = "cpu",
    eval_every: int = 10, checkpoint_every: int = 50,
) -> Profile:  # fmt: skip
    """Return what an outer step of an engine costs, by its parts; the engine takes the steps.

    The parts, each without others inside it:

    - *outer optimizer*: `ask` and `tell`.
    - *inner start*: a new inner state, or the last one.
    - *inner batches*, *outer batches*: drawing and preparing them, for whatever loss.
    - *inner steps*: g, its gradient and the update, in place or on a graph, of the run and of the
      reverse pass that takes steps again. Of a black box all that its steps do.
    - *outer loss*: F, forward; of a black box its evaluation.
    - *hypergradient*: the rest of the estimator's call, such as the reverse pass or a linear solve;
      of an estimator without a gradient it is called *estimator*.
    - *checks*: an estimator's look for paths that it would drop, before outer steps 2, 3, 5, 9, 17
      and so on: the mean of those that were timed, times their frequency in `engine.outer_steps`.
    - *evaluation*, *checkpoint*: `Engine.measured`, and writing the engine's state to a file
      in a temporary folder; each by the second of two calls after the last outer step, times its
      frequency.
    - *other*: what is left of the outer step.

    The results of the outer steps are those of an engine without a profile, to the bit. Memory on
    the CPU is measured in one outer step more, since counting it costs time.

    Args:
        engine: made; it takes `warm_steps + steps` outer steps, and one more on the CPU.
        steps: outer steps to time, >= 1.
        warm_steps: outer steps before those, in which first-time costs are, >= 0.
        device: where the tensors live; a GPU is waited for where a part begins or ends.
        eval_every, checkpoint_every: outer steps between two evaluations and two checkpoints.

    Cost: the outer steps, two evaluations and two checkpoints, and some microseconds a call.

    Raises:
        ValueError: a number out of range, or the run is stopped before an outer step is timed.
    """
    if steps < 1 or warm_steps < 0:
        raise ValueError(
            f"steps must be >= 1 and warm_steps >= 0; got steps={steps}, warm_steps={warm_steps}."
        )
    counted = not device.startswith("cuda")
    needed = engine.outer_step + warm_steps + steps + counted
    if engine.outer_steps < needed:
        raise ValueError(
            f"outer_steps must be >= {needed}, since {warm_steps} outer steps come before the "
            f"{steps} that are timed{' and one for the memory after them' if counted else ''}; got "
            f"outer_steps={engine.outer_steps}. Raise it, or lower steps."
        )
    outer_steps = iter(engine)
    warm, timed, memory = Stopwatch(device), Stopwatch(device), Stopwatch(device)
    with warm.measuring(OTHER):
        _take(outer_steps, warm_steps)
    with cut_open(engine, timed):
        done = 0
        while done < steps and _step(outer_steps, timed):
            done += 1
    if not done:
        raise ValueError(
            f"the run was stopped ({engine.stopped}) before an outer step was timed; lower "
            f"warm_steps={warm_steps}, or raise what stops it."
        )
    if counted:
        with cut_open(engine, memory), _counting(memory):
            _step(outer_steps, memory)
    frequency = dict.fromkeys(timed.sums, 1 / done)
    if CHECKS in timed.sums:
        looks = sum(map(looks_again, range(engine.outer_steps)))
        frequency[CHECKS] = looks / engine.outer_steps / timed.sums[CHECKS].calls
    parts = [_part(name, timed, memory, frequency[name]) for name in timed.sums]
    evaluation = _measured(EVALUATION, lambda: engine.measured(), 1 / eval_every, device)
    with TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.pt")

        def write() -> None:
            solution = engine.optimizer.solution
            write_tensors(path, {"engine": engine.state_dict(), "solution": solution})

        saving = _measured(CHECKPOINT, write, 1 / checkpoint_every, device)
        size = path.stat().st_size
    parts.sort(key=lambda part: ORDER.index(part.name))
    stopped = engine.stopped if done < steps else None
    return Profile((*parts, evaluation, saving), done, stopped, warm.sums[OTHER], size)


def _take(outer_steps: Iterator[object], number: int) -> None:
    for _ in range(number):
        next(outer_steps, None)


def _step(outer_steps: Iterator[object], watch: Stopwatch) -> bool:
    """Take a measured outer step; return whether there was one."""
    with watch.measuring(OTHER):
        return next(outer_steps, None) is not None


@contextmanager
def _counting(watch: Stopwatch) -> Iterator[None]:
    """Return a block in which the storage of tensors is counted."""
    with PeakMemory() as watch.meter:
        yield
    watch.meter = None


def _measured(name: str, call: Callable[[], object], per_step: float, device: str) -> Part:
    """Return what the second of two calls costs, and on the CPU the memory of the first."""
    first, second = Stopwatch(device), Stopwatch(device)
    with (
        _counting(first) if not device.startswith("cuda") else nullcontext(),
        first.measuring(name),
    ):
        call()
    with second.measuring(name):
        call()
    return _part(name, second, first, per_step)


def _part(name: str, timed: Stopwatch, memory: Stopwatch, per_step: float) -> Part:
    """Return a part of measured outer steps; the peak is that of the GPU, or counted apart."""
    cost = timed.sums[name]
    peak = cost.peak_bytes if name not in memory.sums else memory.sums[name].peak_bytes
    return Part(
        name, cost.calls * per_step, cost.seconds * per_step, cost.cpu_seconds * per_step, peak
    )
