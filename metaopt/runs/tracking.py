"""Where a run's scalars go: a file always, a console, and a tracking service when asked for.

A run opens its trackers together and they are closed whatever happens:

    with Tee(Jsonl(folder / "metrics.jsonl"), Console(), service(folder, config)) as tracker:
        tracker.log(step, {"outer/loss": loss})

`Wandb`, `TensorBoard` and `NoTracker` are the options of the config group `tracker`. All three
take the run's folder and its config first, so that a partial of any of them is a `service`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor
from typing_extensions import Self

Scalars = Mapping[str, float | Tensor]
"""Metrics by name (`group/name`), each a number or a tensor of one element."""

MODES = ("online", "offline", "disabled")


class Tracker(Protocol):
    """Takes the scalars of a run; a context manager that closes itself."""

    def log(self, step: int, metrics: Scalars) -> None:
        """Record `metrics` of the outer step `step`, >= 0."""
        ...

    def close(self) -> None:
        """Release what was opened; calling it again does nothing."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def floats(metrics: Scalars) -> dict[str, float]:
    """Return the metrics as Python numbers, with one transfer from each device."""
    tensors = {k: v.detach() for k, v in metrics.items() if isinstance(v, Tensor)}
    numbers = {k: v for k, v in metrics.items() if not isinstance(v, Tensor)}
    for device in {v.device for v in tensors.values()}:
        names = [k for k, v in tensors.items() if v.device == device]
        stacked = torch.stack([tensors[k].reshape(()).double() for k in names])
        numbers.update(zip(names, stacked.tolist(), strict=True))
    return {name: numbers[name] for name in metrics}


class NoTracker(Tracker):
    """Records nothing: the option `tracker=none`, beside the file that is always written."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], resume_step: int | None = None
    ) -> None:
        self.folder = folder

    def log(self, step: int, metrics: Scalars) -> None:
        """Ignore the metrics."""

    def close(self) -> None:
        """Do nothing: nothing was opened."""


class History(list[dict[str, float | None]], Tracker):
    """The records of a run in memory, each `{"outer_step": 10, "outer/loss": 0.5}`.

    A value that is not finite is `None`, as in the file.
    """

    def log(self, step: int, metrics: Scalars) -> None:
        """Append one record."""
        self.append(_record(step, metrics))

    def close(self) -> None:
        """Do nothing: nothing was opened."""

    def to_pandas(self) -> Any:
        """Return a data frame with a line for each record."""
        import pandas as pd

        return pd.DataFrame(list(self)).set_index("outer_step")


class Tee(Tracker):
    """Hands every record to several trackers, and closes all of them even when one fails."""

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers
        self._stack = ExitStack()
        for tracker in trackers:
            self._stack.push(tracker)

    def log(self, step: int, metrics: Scalars) -> None:
        """Record `metrics` in each tracker; tensors are read once."""
        numbers = floats(metrics)
        for tracker in self.trackers:
            tracker.log(step, numbers)

    def close(self) -> None:
        """Close each tracker, the last one first."""
        self._stack.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


class Jsonl(Tracker):
    """One JSON object a line: `{"outer_step": 10, "outer/loss": 0.5}`.

    A line is on its way to the disk when `log` returns, so a killed run loses none. A value that
    is not finite is written as `null`, which keeps the file valid JSON.

    Args:
        path: the file; its folder must exist.
        resume_step: outer step of the checkpoint a run continues from: later lines, and a line
            that was cut short, are removed, and new ones appended. `None` starts the file afresh.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        lines = [] if resume_step is None or not path.exists() else _lines_until(path, resume_step)
        part = path.with_name(path.name + ".part")
        part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        part.replace(path)

    def log(self, step: int, metrics: Scalars) -> None:
        """Append one line."""
        line = json.dumps(_record(step, metrics), allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def close(self) -> None:
        """Do nothing: the file is closed after each line."""


def _record(step: int, metrics: Scalars) -> dict[str, float | None]:
    numbers = floats(metrics).items()
    return {"outer_step": step, **{k: v if math.isfinite(v) else None for k, v in numbers}}


def _lines_until(path: Path, step: int) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if (at := _step_of(line)) is not None and at <= step]


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["outer_step"])
    except (ValueError, KeyError, TypeError):
        return None


class Console(Tracker):
    """A plain line of text now and then, for logs and pipes: `step 10/100  outer/loss 0.5`.

    Args:
        total: number of outer steps of the run, printed behind the step; `None` leaves it out.
        interval_s: least seconds between two lines; lines with an `eval/` metric always appear.
        hidden: prefixes of the metrics that are left out.
        stream: where to print; `None` is the standard output at the time of printing.
    """

    def __init__(
        self,
        total: int | None = None,
        interval_s: float = 5.0,
        hidden: Sequence[str] = ("time/", "budget/"),
        stream: TextIO | None = None,
    ) -> None:
        if interval_s < 0:
            raise ValueError(f"Console needs interval_s >= 0; got {interval_s}.")
        self.total, self.interval_s, self.stream = total, interval_s, stream
        self.hidden = tuple(hidden)
        self._printed = -math.inf

    def log(self, step: int, metrics: Scalars) -> None:
        """Print a line, unless the last one is younger than `interval_s`."""
        now = time.monotonic()
        evaluated = any(name.startswith("eval/") for name in metrics)
        if not evaluated and now - self._printed < self.interval_s:
            return
        self._printed = now
        shown = {k: v for k, v in metrics.items() if not k.startswith(self.hidden)}
        parts = [f"{name} {value:.4g}" for name, value in floats(shown).items()]
        at = f"step {step}" if self.total is None else f"step {step}/{self.total}"
        print("  ".join([at, *parts]), file=self.stream or sys.stdout, flush=True)

    def close(self) -> None:
        """Do nothing: the stream belongs to the caller."""


class Wandb(Tracker):
    """One Weights & Biases run per job, always finished, resumed under the same id.

    The x axis of every chart is `outer_step`. A step that is recorded twice, because a run was
    killed after its last checkpoint, has the same values both times.

    Args:
        folder: the run's folder; the run's id is a hash of its absolute path, and wandb's own
            files go below it.
        config: the resolved config, sent with the run.
        resume_step: taken for the common signature; the id alone resumes a run.
        project: the project's name.
        mode: "online", "offline" (written below `folder`, sent later by `wandb sync`) or
            "disabled"; `None` is what $WANDB_MODE says, else "online".
        entity: user or team; `None` is the account's default.
        group, name, tags: how the run is filed; the name defaults to that of the folder.

    Raises:
        ValueError: an unknown mode.
        ModuleNotFoundError: wandb is not installed.
        ConnectionError: wandb could not start the run (no network, no account).
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        resume_step: int | None = None,
        *,
        project: str = "metaopt",
        mode: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        name_of_mode = "WANDB_MODE" if mode is None else "tracker.mode"
        mode = os.environ.get("WANDB_MODE") or "online" if mode is None else mode
        if mode not in MODES:
            raise ValueError(f"{name_of_mode} must be one of {', '.join(MODES)}; got {mode!r}.")
        self._unsent = folder / "wandb" if mode == "offline" else None
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise _missing("wandb", error) from error
        try:
            # A second wandb.init in one process returns the first run unless told otherwise.
            self.run: Any = wandb.init(
                project=project,
                mode=mode,  # type: ignore[arg-type]
                entity=entity,
                group=group,
                name=name or folder.resolve().name,
                tags=list(tags) or None,
                id=run_id(folder),
                resume="allow",
                reinit="create_new",
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise ConnectionError(
                f"wandb could not start the run: {str(error).rstrip('. ')}. "
                "Log in, or use tracker.mode=offline or tracker=none."
            ) from error
        self.run.define_metric("*", step_metric="outer_step")

    def log(self, step: int, metrics: Scalars) -> None:
        """Send the metrics."""
        self.run.log({"outer_step": step, **floats(metrics)})

    def close(self) -> None:
        """Finish the run as succeeded; say how to send it where it was kept offline."""
        self._finish(0)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finish(0 if kind is None else 1)

    def _finish(self, code: int) -> None:
        self.run.finish(exit_code=code)
        if self._unsent is not None:
            print(f"Kept offline. Send it with: wandb sync {self._unsent}/offline-run-*")
            self._unsent = None


def run_id(folder: Path) -> str:
    """Return the wandb id of a run's folder: 16 hexadecimal digits of its absolute path's hash."""
    return blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()


class TensorBoard(Tracker):
    """Event files in `<folder>/tensorboard`, for `tensorboard --logdir <results folder>`.

    Args:
        folder: the run's folder.
        config: taken for the common signature; the folder's config.yaml holds it.
        resume_step: outer step a run continues from; TensorBoard hides what was beyond it.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], resume_step: int | None = None
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise _missing("tensorboard", error) from error
        purge = None if resume_step is None else resume_step + 1
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, metrics: Scalars) -> None:
        """Write the metrics."""
        for name, value in floats(metrics).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending and close the file."""
        self.writer.close()


def _missing(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"tracker={package} needs the package {package} ({error}). "
        f"Install it with `pip install {package}`, or use tracker=none.",
        name=package,
    )
