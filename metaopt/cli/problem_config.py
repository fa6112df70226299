"""The problem of a command line, without a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from metaopt.cli import schema
from metaopt.cli.composing import cause
from metaopt.cli.keys import refuse_unread
from metaopt.cli.loading import CONFIG
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import loop_of
from metaopt.estimators.inner_run import require_gradients
from metaopt.files.errors import ConfigError
from metaopt.runs.torch_settings import prepare_torch

KEYS = (
    "problem", "estimator", "optimizer", "inner_steps", "outer_steps", "threads", "device", "seed",
)  # fmt: skip


def composed(overrides: list[str]) -> dict[str, Any]:
    """Return the problem, estimator and optimizer of a config, and how torch is to run."""
    config: Any = compose(CONFIG, overrides)
    refuse_unread(config, overrides, shared=True)
    if config.seeds is not None:
        raise ConfigError(
            f"metaopt-check looks at one seed, seed={config.seed}; drop seeds={config.seeds}."
        )
    parts: Any = OmegaConf.create({k: config[k] for k in KEYS})
    parts._set_parent(config)
    resolved: Any = OmegaConf.to_container(parts, resolve=True, throw_on_missing=True)
    schema.check(resolved)
    return dict(resolved)


def made(config: Mapping[str, Any], command: str) -> GradientProblem:
    """Return the problem of a config, or raise a `TypeError` if it states no losses."""
    prepare_torch(config["threads"], config["device"])
    try:
        problem: GradientProblem = instantiate(config["problem"], _convert_="all")
    except InstantiationException as error:
        raise cause(error) from None
    require_gradients(loop_of(problem), command, through_decisions=False)
    return problem
