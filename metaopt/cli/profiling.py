"""The command `metaopt-profile`: seconds and memory of a run by its parts, as a table."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import OmegaConf, open_dict

from metaopt.cli import folders, torchrun
from metaopt.cli.build import worded
from metaopt.cli.composing import parts
from metaopt.cli.keys import check_keys, refuse_unread
from metaopt.cli.loading import CONFIG, composing
from metaopt.cli.profile_table import Once, numbers, peak_resident, show
from metaopt.cli.resolving import with_totals
from metaopt.cli.schema import check
from metaopt.cli.seeds import with_seeds
from metaopt.files.errors import ConfigError
from metaopt.runs.progress import announced, checks
from metaopt.runs.torch_settings import prepare_torch
from metaopt.testing.profile import profile

OPTIONS = ("steps", "warm_steps", "json")

USAGE = """metaopt-profile [--config-dir CONF] problem=<name> [key=value ...]

Print what an outer step of a run costs, part by part: seconds, CPU seconds and
peak memory. No folder is written. --config-dir finds a problem of your own, as
for metaopt. Keys are those of metaopt, and

  steps=N        outer steps to time (10)
  warm_steps=N   outer steps before those, with what is done once (2)
  json=FILE      write all numbers to a file as well

The run takes warm_steps + steps outer steps of the configured outer_steps, and
on the CPU one more, in which memory is counted."""


def main(arguments: Sequence[str]) -> int:
    """Profile the run that the overrides compose; return the exit code."""
    arguments = folders.use(arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    if torchrun.processes() > 1:
        raise ConfigError("metaopt-profile measures one process; start it without torchrun.")
    split = [a.partition("=") for a in arguments]
    options = {key: value for key, _, value in split if key in OPTIONS}
    steps, warm_steps = _count(options, "steps", 10, 1), _count(options, "warm_steps", 2, 0)
    path = _writable(options["json"]) if "json" in options else None
    config = _composed([a for a in arguments if a.partition("=")[0] not in OPTIONS])
    problem, engine = Once("problem, estimator and optimizer"), Once("engine, with its checks")
    with worded():
        prepare_torch(config["threads"], config["device"])
        with (
            announced("Preparing the problem: data, models and what is read once."),
            _noted(problem),
        ):
            made = parts(config, ("estimator", "optimizer", "engine"))
        with announced(checks(made["problem"], made["estimator"], "problem.")), _noted(engine):
            run = made["engine"](made["problem"], made["estimator"], made["optimizer"])
        costs = profile(
            run, steps, warm_steps=warm_steps, device=config["device"],
            eval_every=config["eval_every"], checkpoint_every=config["checkpoint_every"],
        )  # fmt: skip
    warm = Once(f"{warm_steps} warm-up outer steps", costs.warm.seconds, costs.warm.cpu_seconds)
    once = [problem, engine, *([warm] if warm_steps else [])]
    show(once, costs, config)
    if path is not None:
        path.write_text(json.dumps(numbers(once, costs, config), indent=2) + "\n")
    return 0


def _count(options: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} must be a whole number >= {least}; got {text!r}.")
    return int(text)


def _writable(text: str) -> Path:
    """Return a path that a file can be written to, or raise a `ConfigError`."""
    path = Path(text)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"json={text} names a file in a folder that is not there.")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"json={text} cannot be written; name a file in a folder of your own.")
    return path


def _composed(overrides: list[str]) -> dict[str, Any]:
    """Return the resolved config of a run, as `metaopt` has it."""
    with composing():
        config = compose(CONFIG, overrides)
        with open_dict(config):
            config.pop("methods", None)  # of a whole table
        refuse_unread(config, overrides, shared=False)
        resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        resolved = with_totals(config, with_seeds(config, resolved))
    check_keys(resolved)
    check(resolved)
    return dict(resolved)


@contextmanager
def _noted(part: Once) -> Iterator[None]:
    """Note what a block costs."""
    seconds, cpu_seconds, resident = time.perf_counter(), time.process_time(), peak_resident()
    yield
    part.seconds = time.perf_counter() - seconds
    part.cpu_seconds = time.process_time() - cpu_seconds
    part.resident_bytes = peak_resident() - resident
