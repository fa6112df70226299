"""Where a run's scalars go: a file always, and a tracking service when asked for.

    with Jsonl(folder / "metrics.jsonl") as tracker:
        tracker.log(step, {"outer/loss": 0.5})

`Wandb` and `TensorBoard` are the options of the config group `tracker`. Both take the run's folder,
its config and the step that it continues from, so that a partial of either is a `Service` of
`metaopt.runs.run`. What a person sees of a run is in `metaopt.runs.progress`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b, sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from metaopt.engine.inner_progress import Progress
from metaopt.files.errors import ConfigError
from metaopt.files.numbers import or_null
from metaopt.files.writing import replacing

MODES = ("online", "offline", "disabled")


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


class History(list[dict[str, Any]], Tracker):
    """The records of a run in memory, each `{"outer_step": 10, "outer/loss": 0.5}`.

    A value that is not finite is `None`, as in the file. Where several seeds are trained together,
    the values are means, and `"replicates"` has those of each: `{"outer/loss": [0.4, 0.6]}`.
    """

    def record(self, step: int, values: Values) -> None:
        """Append one record."""
        self.append(_record(step, values))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record of metrics that have no replicates."""
        self.record(step, metrics)

    def to_pandas(self) -> Any:
        """Return a data frame with a line for each record."""
        import pandas as pd

        return pd.DataFrame(list(self)).set_index("outer_step")


class Jsonl(Tracker):
    """One JSON object a line: `{"outer_step": 10, "outer/loss": 0.5}`.

    Where several seeds are trained together, the values are means, and `"replicates"` has those of
    each: `{"outer/loss": [0.4, 0.6]}`, in the order of the seeds.

    A line is on its way to the disk when `log` returns, so a killed run loses none. A value that
    is not finite is written as `null`, which keeps the file valid JSON.

    Args:
        path: the file; its folder must exist.
        kept: what the file begins with: its lines up to the checkpoint that a run continues from.
    """

    def __init__(self, path: Path, kept: bytes = b"") -> None:
        self.path, self._size, self._hash = path, len(kept), sha256(kept)
        with replacing(path) as file:
            file.write(kept)

    def record(self, step: int, values: Values) -> None:
        """Append one line."""
        line = (json.dumps(_record(step, values), allow_nan=False) + "\n").encode()
        with self.path.open("ab") as file:
            file.write(line)
        self._size += len(line)
        self._hash.update(line)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record of metrics that have no replicates."""
        self.record(step, metrics)

    def commit(self) -> dict[str, Any]:
        """Bring the file to the disk and return its size and hash, for a checkpoint."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}


def _record(step: int, values: Values) -> dict[str, Any]:
    numbers = {k: or_null(v) for k, v in means(values).items()}
    record: dict[str, Any] = {"outer_step": step, **numbers}
    if replicates := of_replicates(values):
        record["replicates"] = nullable(replicates)
    return record


def nullable(replicates: Values) -> dict[str, list[float | None]]:
    """Return the values of each replicate, with `None` for those that are not finite."""
    return {k: [or_null(x) for x in v] for k, v in replicates.items() if isinstance(v, list)}


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
        ConfigError: wandb could not start the run (no network, no account).
    """

    package = "wandb"

    @classmethod
    def check(cls, mode: str | None = None, **_: Any) -> None:
        """Raise an error if a run could not be sent: an unknown mode, or no account.

        On a terminal wandb asks for the key.
        """
        if _wandb_mode(mode) == "online":
            import wandb

            try:
                wandb.login(verify=False)
            except wandb.Error as error:
                raise _not_started(error) from error

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
        mode = _wandb_mode(mode)
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
            raise _not_started(error) from error
        self.run.define_metric("*", step_metric="outer_step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics."""
        self.run.log({"outer_step": step, **metrics})

    def close(self) -> None:
        """Finish the run as succeeded; say how to send it where it was kept offline."""
        self._finish(0)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
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

    package = "tensorboard"

    def __init__(
        self, folder: Path, config: Mapping[str, Any], resume_step: int | None = None
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise _missing("tensorboard", error) from error
        purge = None if resume_step is None else resume_step + 1
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending and close the file."""
        self.writer.close()


def refuse_unusable(service: Any) -> None:
    """Raise an error if what makes a tracker could not: its package is missing, or its `check`."""
    kind = getattr(service, "func", service)
    package, check = getattr(kind, "package", None), getattr(kind, "check", None)
    if package is not None and find_spec(package) is None:
        raise _missing(package, ModuleNotFoundError(f"No module named {package!r}"))
    if check is not None:
        check(**getattr(service, "keywords", {}))


def _wandb_mode(mode: str | None) -> str:
    """Return the mode of a run, which the environment says where it is `None`."""
    name = "WANDB_MODE" if mode is None else "tracker.mode"
    mode = os.environ.get("WANDB_MODE") or "online" if mode is None else mode
    if mode not in MODES:
        raise ValueError(f"{name} must be one of {', '.join(MODES)}; got {mode!r}.")
    return mode


def _not_started(error: Exception) -> ConfigError:
    return ConfigError(
        f"wandb could not start the run: {str(error).rstrip('. ')}. tracker.mode=offline and "
        f"tracker=none need no account."
    )


def _missing(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"tracker={package} needs the package {package} ({error}). "
        f"Install it with `pip install {package}`, or use tracker=none.",
        name=package,
    )
