"""A run's `.wandb` file, read back as the records of wandb's protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

from metaopt.runs.tracking.wandb_file import HEADER, messages


def records(path: Path) -> list[Record]:
    """Return the records of a file; raise an error where its sums or its numbers are wrong."""
    content = path.read_bytes()
    assert content.startswith(HEADER)
    parsed = [Record.FromString(message) for message in messages(content)]
    # wandb counts the records as it writes them, so that none that was written is left out.
    assert [record.num for record in parsed] == list(range(1, len(parsed) + 1))
    return parsed


def history(path: Path) -> list[dict[str, Any]]:
    """Return what was logged, in order, with wandb's `_step`; without its times."""
    rows = [
        _items(r.history.item) for r in records(path) if r.WhichOneof("record_type") == "history"
    ]
    return [{k: v for k, v in row.items() if k not in ("_timestamp", "_runtime")} for row in rows]


def summary(path: Path) -> dict[str, Any]:
    """Return the summary as it is in the end."""
    values: dict[str, Any] = {}
    for record in records(path):
        values |= _items(record.summary.update)
    return values


def config(path: Path) -> dict[str, Any]:
    """Return the config of the run."""
    return _items(run(path).config.update)


def run(path: Path) -> Any:
    """Return the record that the run began with."""
    return next(r.run for r in records(path) if r.WhichOneof("record_type") == "run")


def axes(path: Path) -> dict[str, str]:
    """Return the x axis of each metric that has one."""
    metrics = [r.metric for r in records(path) if r.WhichOneof("record_type") == "metric"]
    return {m.name or m.glob_name: m.step_metric for m in metrics if m.step_metric}


def exit_code(path: Path) -> int | None:
    """Return with which code the run was finished; `None` where it was not."""
    codes = [r.exit.exit_code for r in records(path) if r.WhichOneof("record_type") == "exit"]
    return codes[-1] if codes else None


def artifacts(path: Path) -> dict[str, list[str]]:
    """Return the files of each artifact by its type."""
    kinds: dict[str, list[str]] = {}
    for record in records(path):
        artifact = record.artifact
        if not artifact.type:
            artifact = record.request.log_artifact.artifact
        if artifact.type:
            kinds[artifact.type] = sorted(x.path for x in artifact.manifest.contents)
    return kinds


def _items(items: Any) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
