"""What was measured of a finished run afterwards: `checks.json`, which reports show as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from metaopt.files import sums
from metaopt.files.errors import DamagedFileError
from metaopt.files.numbers import is_number
from metaopt.files.reading import damaged, read_json
from metaopt.files.writing import write_json

FILE = "checks.json"
PREFIX = "check/"
"""How the names of these metrics begin; a run that is made again does not have them."""

ADVICE = "Measure again, or delete it."


def write_checks(folder: Path, metrics: Mapping[str, float], settings: Mapping[str, Any]) -> None:
    """Write metrics of a finished run, and how they were measured.

    Args:
        folder: the run's.
        metrics: by name, without the prefix `check/`.
        settings: primitives that say how.
    """
    of = sums.of_file(folder / "result.json")
    content = {"result": of, "metrics": dict(metrics), "settings": dict(settings)}
    write_json(folder / FILE, content)


def discard_stale(folder: Path) -> None:
    """Remove what was measured of another result than the folder's, as of a run since extended."""
    path = folder / FILE
    with suppress(DamagedFileError):  # a report names it
        if path.exists() and not _is_of(folder, read_json(path, ADVICE)):
            path.unlink()


def _is_of(folder: Path, content: Mapping[str, Any]) -> bool:
    return bool(content.get("result") == sums.of_file(folder / "result.json"))


def read_checks(folder: Path) -> dict[str, float]:
    """Return the metrics with their prefix; none where nothing was measured.

    Raises:
        DamagedFileError: the file is damaged, or is of another result than the folder's.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    content = read_json(path, ADVICE)
    if not _is_of(folder, content):
        raise damaged(path, "it was measured of another result.json than the one here", ADVICE)
    metrics = content.get("metrics")
    if not isinstance(metrics, dict) or not all(map(is_number, metrics.values())):
        raise damaged(path, "metrics must hold numbers by name", ADVICE)
    return {f"{PREFIX}{name}": float(value) for name, value in metrics.items()}
