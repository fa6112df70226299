"""What all tracking services share: a mistake is said before the run, a failure does not end it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from typing_extensions import Self

from metaopt.runs.tracking.protocol import Tracker, Values


class Guarded(Tracker):
    """A tracker whose failures are said once, on the standard error, and end nothing.

    A run may take days, and metrics.jsonl has all that a service is told.

    Args:
        make: makes the tracker; it may fail, too.
        folder: of the run.
    """

    def __init__(self, make: Callable[[], Tracker], folder: Path) -> None:
        self._folder, self._failed = folder, False
        self._tracker: Tracker | None = None
        self._tracker = self._attempt("starting", make)

    def _attempt(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            if not self._failed:
                name = "the tracker" if self._tracker is None else type(self._tracker).__name__
                why = f"{type(error).__name__}: {error}".rstrip(".: ")
                print(f"{self._folder}: {name} failed while {what} ({why}). The run does "
                      f"not need it: metrics.jsonl has every record.", file=sys.stderr)  # fmt: skip
            self._failed = True
            return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand on the metrics, unless the tracker has failed."""
        self.record(step, metrics)

    def record(self, step: int, values: Values) -> None:
        """Hand on the values, unless the tracker has failed."""
        if self._tracker is not None and not self._failed:
            tracker = self._tracker
            self._attempt(f"logging outer step {step}", lambda: tracker.record(step, values))

    def conclude(self, result: Mapping[str, Any]) -> None:
        """Hand on the result, unless the tracker has failed."""
        if self._tracker is not None and not self._failed:
            tracker = self._tracker
            self._attempt("recording the result", lambda: tracker.conclude(result))

    def __enter__(self) -> Self:
        if self._tracker is not None:
            self._attempt("starting", self._tracker.__enter__)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close the tracker, also one that has failed."""
        if self._tracker is not None:
            tracker = self._tracker
            self._attempt("closing", lambda: tracker.__exit__(kind, *rest))


def refuse_unusable(service: Any) -> None:
    """Raise an error if what makes a tracker could not: its package is missing, or its `check`."""
    kind = getattr(service, "func", service)
    package, check = getattr(kind, "package", None), getattr(kind, "check", None)
    if package is not None and find_spec(package) is None:
        raise missing(package, ModuleNotFoundError(f"No module named {package!r}"))
    if check is not None:
        check(**getattr(service, "keywords", {}))


def missing(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return the error that says which package a tracker needs."""
    return ModuleNotFoundError(
        f"tracker={package} needs the package {package} ({error}). "
        f"Install it with `pip install {package}`, or use tracker=none.",
        name=package,
    )
