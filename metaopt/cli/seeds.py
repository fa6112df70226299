"""Several seeds of one config: which keys depend on the seed, and the problem of each."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig

from metaopt.cli.resolving import resolved_with
from metaopt.engine.seed_attributes import INSTEAD
from metaopt.engine.seeds import seeds_from
from metaopt.files.errors import ConfigError
from metaopt.runs.configs import flatten

VALUES = "values_by_seed"
"""Key of a resolved config: by dotted key of the problem, its value for each of the seeds."""


def with_seeds(config: DictConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved config that says what the problem of each of its `seeds` is.

    Args:
        config: the same with its interpolations, such as `problem.seed: ${seed}`.
        resolved: as it is with its first seed.

    Raises:
        ConfigError: the seeds are none, or something else than the problem depends on them.
    """
    if resolved.get("seeds") is None:
        return resolved
    try:
        seeds = seeds_from(resolved["seed"], resolved["seeds"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    assert seeds is not None
    if "seeds" not in resolved["engine"]:
        raise ConfigError(
            f"seeds={resolved['seeds']}: {resolved['engine'].get('_target_')} trains one seed at a "
            f"time. {INSTEAD}"
        )
    each = [dict(flatten(resolved_with(config, seed=seed))) for seed in seeds]
    values = {
        key: [flat.get(key) for flat in each]
        for key in each[0]
        if key != "seed" and any(flat.get(key) != each[0][key] for flat in each)
    }
    for key in values:
        if key.partition(".")[0] != "problem" and key != "engine.seed":
            raise ConfigError(
                f"{key} depends on the seed, and seeds that are trained together share all but "
                f"the problem. {INSTEAD}"
            )
    values = {key: each for key, each in values.items() if key != "engine.seed"}
    engine = {**resolved["engine"], "seeds": list(seeds)}
    return {**resolved, "engine": engine, "seeds": list(seeds), VALUES: values}


def problems(config: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the problem's node of each seed of a resolved config; of one seed that is its own."""
    for i in range(len(config.get("seeds") or [0])):
        whole = {"problem": copy.deepcopy(config["problem"])}
        for key, values in (config.get(VALUES) or {}).items():
            *path, last = key.split(".")
            node: Any = whole
            for name in path:
                node = node[name]
            node[last] = values[i]
        yield whole["problem"]
