"""Configs as values: what of one a result depends on, its hash, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

TOTALS = "from_outer_steps"
"""Key that lists the keys whose values were computed from the number of outer steps."""

IRRELEVANT = (
    "checkpoint_every", "figures", TOTALS, "keep_checkpoints", "log_every", "objective",
    "report", "label", "tracker", "tasks",
)  # fmt: skip
"""Keys of a config that leave the numbers of a result as they are; `tasks` is the estimator's."""

OPTIONAL = ("early_stopping", "keep_best", "tasks")
"""Keys that are as good as absent where they name no metric: older runs have none of them."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of what a result depends on; see `IRRELEVANT`."""
    text = json.dumps(_part(config, relevant=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], relevant: bool = True) -> list[str]:
    """Return one line, `key: old -> new`, for every key in which two configs differ.

    Args:
        old, new: the configs.
        relevant: of the keys that a result depends on; else of the others, see `IRRELEVANT`.
    """
    left, right = (dict(flatten(_part(config, relevant))) for config in (old, new))
    return [
        f"{key}: {left.get(key, 'absent')} -> {right.get(key, 'absent')}"
        for key in sorted({*left, *right})
        if left.get(key, "absent") != right.get(key, "absent")
    ]


def _part(config: Mapping[str, Any], relevant: bool) -> Any:
    return {
        k: v
        for k, v in as_json(config).items()
        if (k not in IRRELEVANT) == relevant and not (k in OPTIONAL and _is_off(v))
    }


def _is_off(value: Any) -> bool:
    return (value.get("metric") if isinstance(value, Mapping) else value) is None


def as_json(config: Mapping[str, Any]) -> Any:
    """Return a config as it comes back from a JSON file, where keys are texts, tuples lists."""
    return json.loads(json.dumps(config, default=str))


def flatten(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf of a nested config; empty dicts are leaves."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
