"""How a run is filed in a tracking service, and the part of its config that may be sent there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SECRET = re.compile(
    r"api_?key|secret|passw|credential|authorization|(access|auth|bearer)_?token|^token$", re.I
)
"""In the name of a key or of an environment variable: its value is not sent."""

VARIABLE = re.compile(rf"{SECRET.pattern}|_(key|token|pat)$", re.I)
"""The same of environment variables, which have less to do with tokens of text."""

LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
"""Name and password in an address."""

HIDDEN = "(not sent)"


class Filing(NamedTuple):
    """Where a run stands among others.

    Args:
        group: the table that it is a cell of: the config's `name`.
        job_type: its method there: the config's `label`, else the estimator.
        tags: problem, estimator and outer optimizer.
    """

    group: str
    job_type: str
    tags: list[str]


def filing(config: Mapping[str, Any]) -> Filing:
    """Return how a run of a config is filed, in at most 128 and 64 characters as wandb takes."""
    parts = [_part(config.get(name)) for name in ("problem", "estimator", "optimizer")]
    method = config.get("label") or parts[1] or "run"
    tags = [part[:64] for part in parts if part]
    return Filing(str(config.get("name") or "metaopt")[:128], str(method)[:64], tags)


def _part(node: Any) -> str:
    """Return the class of a part of a config; with the algorithm or the solver that it uses."""
    if isinstance(node, list) and node:  # the problem of each seed
        node = node[0]
    if not isinstance(node, Mapping):
        return ""
    name = re.split(r"[.:]", str(node.get("_target_") or node.get("_class_") or ""))[-1]
    detail = node.get("algorithm") or _part(node.get("solve"))
    return f"{name} {detail}" if isinstance(detail, str) and detail else name


def sendable(config: Any) -> Any:
    """Return a config without what looks like a secret.

    Secrets come from the environment and belong in no config. What is under a name such as
    `api_key`, what an environment variable of such a name holds, and the login of an address are
    left out all the same.
    """
    secrets = [v for k, v in os.environ.items() if VARIABLE.search(k) and len(v) >= 8]
    return _without(config, secrets)


def _without(node: Any, secrets: Sequence[str]) -> Any:
    if isinstance(node, Mapping):
        return {k: HIDDEN if _is_secret(k, v) else _without(v, secrets) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [_without(value, secrets) for value in node]
    if not isinstance(node, str):
        return node
    return HIDDEN if any(s in node for s in secrets) else LOGIN.sub(HIDDEN, node)


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and bool(SECRET.search(str(key)))
