"""The records of a run: in memory, and as the lines of metrics.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from metaopt.files.numbers import or_null
from metaopt.files.writing import replacing
from metaopt.runs.tracking.protocol import Tracker, Values, means, of_replicates


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
        head: what the file begins with: its lines up to the checkpoint that a run continues from.
    """

    def __init__(self, path: Path, head: bytes = b"") -> None:
        self.path, self._size, self._hash = path, len(head), sha256(head)
        with replacing(path) as file:
            file.write(head)

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


def first_record(log: bytes) -> dict[str, Any]:
    """Return the first record of what a `Jsonl` has written; none where it is empty."""
    line = log.partition(b"\n")[0]
    return dict(json.loads(line)) if line else {}


def _record(step: int, values: Values) -> dict[str, Any]:
    numbers = {k: or_null(v) for k, v in means(values).items()}
    record: dict[str, Any] = {"outer_step": step, **numbers}
    if replicates := of_replicates(values):
        record["replicates"] = nullable(replicates)
    return record


def nullable(replicates: Values) -> dict[str, list[float | None]]:
    """Return the values of each replicate, with `None` for those that are not finite."""
    return {k: [or_null(x) for x in v] for k, v in replicates.items() if isinstance(v, list)}
