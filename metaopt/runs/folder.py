"""What the folder of a run says of it, checked; nothing here needs torch or runs anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metaopt.files.errors import FolderError
from metaopt.files.numbers import is_number
from metaopt.files.reading import damaged, read_json, read_yaml
from metaopt.runs.configs import config_hash
from metaopt.runs.stopping import is_stop

Kinds = Mapping[str, tuple[Callable[[Any], bool], str]]
"""By key, whether a value is legal, and what it is said to be where it is not."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of a run's folder; where it is deleted, the one the run was started with.

    Raises:
        FolderError: the folder holds no run, or the file is damaged.
    """
    path = folder / "config.yaml"
    if path.exists():
        advice = f"Delete it; metaopt resume={folder} writes it again."
        return _checked(read_yaml(path, advice), path, advice)
    before = started_with(folder)
    if before is not None:
        return before
    cells = sorted(x.parent for x in folder.glob("*/config.yaml"))
    hint = f" It holds {len(cells)} runs, such as {cells[0]}; give one of them." if cells else ""
    raise FolderError(f"{folder} is not a run's folder: {path} is missing.{hint}")


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's `provenance.json`, empty where there is none.

    Raises:
        DamagedFileError: the file is damaged.
    """
    path = folder / "provenance.json"
    if not path.exists():
        return {}
    advice = (
        "Restore it from a copy, or delete it: the run then continues from its checkpoints, which "
        "hold its config, and forgets its overrides."
    )
    record = read_json(path, advice)
    kinds = {
        "config": dict,
        "extended": dict,
        "overrides": list,
        "config_dirs": list,
        "trust": list,
    }
    for key, kind in kinds.items():
        if not isinstance(record.get(key, kind()), kind):
            raise damaged(path, f"{key} is not a {kind.__name__}", advice)
    if "config" in record:
        _checked(record["config"], path, advice)
    return record


def _checked(config: dict[str, Any], path: Path, advice: str) -> dict[str, Any]:
    """Return a config, unless a key of it that a folder is read by is not of its kind."""
    for key, (valid, what) in CONFIG.items():
        if not valid(config.get(key)):
            raise damaged(path, f"{key} is not {what}", advice)
    return config


def started_with(folder: Path) -> dict[str, Any] | None:
    """Return the config that the run of a folder was started with, or `None` where none is kept."""
    return read_provenance(folder).get("config")


def result_of(folder: Path) -> dict[str, Any] | None:
    """Return the content of the folder's `result.json`, or `None` while the run is not over.

    Raises:
        DamagedFileError: the file is damaged, or the result of another config.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    advice = f"Delete it; metaopt resume={folder} computes it again from the last checkpoint."
    result = read_json(path, advice)
    for key, (valid, what) in RESULT.items():
        if (key in result and not valid(result[key])) or (key == "metrics" and key not in result):
            raise damaged(path, f"{key} is not {what}", advice)
    seeds = result.get("seeds", [])
    for values in result.get("replicates", {}).values():
        if seeds and len(values) != len(seeds):
            why = f"it has {len(seeds)} seeds, and {len(values)} values of each metric"
            raise damaged(path, why, advice)
    config = started_with(folder)
    if config is None and (folder / "config.yaml").exists():
        config = read_config(folder)
    if config is not None and result.get("config_hash", "") not in ("", config_hash(config)):
        raise damaged(path, "it is the result of another config than the folder's", advice)
    return result


def _numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(x is None or is_number(x) for x in value.values())


def _replicates(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(v, list) for v in value.values()):
        return False
    each = [*value.values()]
    return (
        len({len(v) for v in each}) <= 1
        and [] not in each
        and all(x is None or is_number(x) for v in each for x in v)
    )


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


CONFIG: Kinds = {
    "seed": (lambda x: type(x) is int, "a whole number"),
    "outer_steps": (lambda x: type(x) is int, "a whole number"),
    "report": (lambda x: x is None or isinstance(x, Mapping), "a mapping"),
}
"""What the keys of a config hold of which a run's folder is read by more than its problem."""

RESULT: Kinds = {
    "metrics": (_numbers, "a mapping of numbers"),
    "budget": (_numbers, "a mapping of numbers"),
    "outer_steps": (lambda x: type(x) is int and x >= 0, "a whole number >= 0"),
    "stopped": (is_stop, "null, or who stopped the run and why"),
    "best": (lambda x: isinstance(x, Mapping) and type(x.get("outer_step")) is int, "a mapping"),
    "overrides": (lambda x: isinstance(x, list), "a list"),
    "seeds": (lambda x: isinstance(x, list) and all(type(s) is int for s in x), "a list"),
    "resplit": (lambda x: is_number(x) and x >= 0, "a number >= 0"),
    "versions": (_mapping, "a mapping"),
    "hardware": (_mapping, "a mapping"),
    "processes": (lambda x: type(x) is int and x >= 1, "a whole number >= 1"),
    "authorisation": (_mapping, "a mapping"),
    "replicates": (_replicates, "a mapping of lists of numbers, as many of each metric"),
}
"""What the keys of `result.json` hold."""
