"""A composed config with other values of some keys, and what depends on them."""

from __future__ import annotations

import copy
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from metaopt.runs.configs import TOTALS, differences
from metaopt.runs.continuing import STEPS


def resolved_with(config: DictConfig, **values: Any) -> Any:
    """Return a config, resolved, with other values of these keys."""
    other = copy.deepcopy(config)
    with open_dict(other):
        for key, value in values.items():
            other[key] = value
    return OmegaConf.to_container(other, resolve=True, throw_on_missing=True)


def with_totals(config: DictConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved config that names, under `TOTALS`, what is computed from `outer_steps`.

    Such as the length of a schedule, which stays when the run is extended.

    Args:
        config: the same with its interpolations, such as `total: ${outer_steps}`.
        resolved: as it is.
    """
    steps = resolved["outer_steps"]
    if type(steps) is not int:  # which is refused later
        return resolved
    # Which values another number changes: that holds for whatever stands between.
    changed = differences(resolved, resolved_with(config, outer_steps=steps + 1))
    keys = [key for line in changed if (key := line.partition(":")[0]) not in STEPS]
    return {**resolved, TOTALS: keys} if keys else resolved
