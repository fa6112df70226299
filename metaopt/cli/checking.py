"""The command `metaopt-check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from metaopt.cli import checks as schema
from metaopt.cli import folders
from metaopt.cli.composing import CONFIG, cause, composing
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.runs.errors import ConfigError
from metaopt.runs.run import prepare_torch
from metaopt.testing import check_report as hypergradients

USAGE = """metaopt-check [--config-dir CONF] problem=<name> [key=value ...]

Print how far each estimator is from the exact hypergradient of a differentiable problem, with the
seconds and the memory of a call. --config-dir finds a problem of your own, as for metaopt. Keys
are those of metaopt, and

  estimator=a,b    the estimators to check; all of configs/estimator by default
  steps=N          most inner steps to the start, and through the reference
  warm_steps=N     outer steps before the rows marked warm (20)
  json=FILE        write the rows to a file as well"""


def main(arguments: Sequence[str]) -> int:
    """Compare estimators with the exact hypergradient of the problem that the overrides name."""
    arguments = folders.use(arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    split = [a.partition("=") for a in arguments]
    own = {k: v for k, _, v in split if k in ("steps", "warm_steps", "json")}
    own.setdefault("warm_steps", "20")
    chosen = [v for k, _, v in split if k == "estimator"]
    overrides = [a for a in arguments if a.partition("=")[0] not in (*own, "estimator")]
    names = chosen[-1].split(",") if chosen else [*folders.groups()["estimator"]]
    with composing():
        configs = {n: _composed([*overrides, f"estimator={n}"]) for n in names}
    config = next(iter(configs.values()))
    prepare_torch(config["threads"], config["device"])
    try:
        estimators = {n: instantiate(c["estimator"], _convert_="all") for n, c in configs.items()}
        problem = instantiate(config["problem"], _convert_="all")
        forks = isinstance(problem, GradientProblem) and not problem.warm_start
        hypergradients.report(
            problem, estimators, steps=_count(own, "steps"),
            reference_steps=config["inner_steps"] if forks else None,
            warm_steps=_count(own, "warm_steps") or 0,
            key=config["seed"],
            optimizer=lambda: instantiate(config["optimizer"], _convert_="all"),
            json_file=Path(own["json"]) if "json" in own else None,
        )  # fmt: skip
    except InstantiationException as error:
        raise cause(error) from None
    return 0


def _count(own: Mapping[str, str], name: str) -> int | None:
    if name not in own:
        return None
    if not own[name].isdigit():
        raise ConfigError(f"{name} must be a whole number >= 0; got {own[name]!r}.")
    return int(own[name])


def _composed(overrides: list[str]) -> dict[str, Any]:
    """Return the problem, estimator and optimizer of a config, and how torch is to run."""
    config: Any = compose(CONFIG, overrides)
    keys = ("problem", "estimator", "optimizer", "inner_steps", "threads", "device", "seed")
    parts: Any = OmegaConf.create({k: config[k] for k in keys})
    parts._set_parent(config)
    resolved: Any = OmegaConf.to_container(parts, resolve=True, throw_on_missing=True)
    schema.check(resolved)
    return dict(resolved)
