"""The command `metaopt`: one run, a sweep, or the rest of a run."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.types import RunMode
from omegaconf import DictConfig

from metaopt.cli import folders
from metaopt.cli.cells import Multirun
from metaopt.cli.jobs import Outcome, job, resume
from metaopt.cli.keys import check_name
from metaopt.cli.launching import failures
from metaopt.cli.loading import CONFIG, composing
from metaopt.cli.processes import as_one
from metaopt.cli.sweep import compares, discard, multirun
from metaopt.files.errors import ConfigError


def run(arguments: Sequence[str]) -> int:
    """Run the config that the arguments compose, in all processes; return the exit code."""
    return as_one(lambda: _run(arguments), arguments)


def _run(arguments: Sequence[str]) -> int:
    rest = folders.use(arguments)
    flags, overrides = _flags().parse_known_args(rest)
    for name in (a.partition("=")[2] for a in overrides if re.match(r"\+{0,2}name=", a)):
        check_name(name.strip("'\""))  # before hydra makes a folder of it
    resumed = [a.partition("=")[2] for a in rest if a.startswith("resume=")]
    if len(resumed) > 1:
        raise ConfigError(f"resume= takes one folder; got {' and '.join(resumed)}.")
    if resumed:
        outcome = resume(Path(resumed[0]), [a for a in rest if not a.startswith("resume=")])
        return int(outcome.status == "failed")
    if any(a.startswith("-") for a in overrides):
        return _hydra_itself(rest)
    with composing() as loaded:
        if flags.multirun or _is_a_sweep(loaded, flags.config_name, overrides):
            started = time.monotonic()
            task = partial(job, shared=compares(overrides))
            sweep = multirun(loaded, flags.config_name, [*overrides, MULTIRUN], task)
            if isinstance(sweep, int):  # a search has said what it found
                return sweep
            return _summary(sweep, time.monotonic() - started)
        outcome = loaded.run(flags.config_name, job, overrides).return_value
    return int(outcome.status == "failed")


MULTIRUN = "hydra.mode=MULTIRUN"


def _is_a_sweep(loaded: Any, name: str, overrides: list[str]) -> bool:
    """Return whether what the overrides compose to sets hydra's mode, as an experiment does."""
    may = any(o.lstrip("+").startswith(("experiment=", "hydra")) for o in overrides)
    if name == CONFIG and not may and not folders.of_user():  # spares composing twice
        return False
    return bool(loaded.get_mode(name, overrides) == RunMode.MULTIRUN)


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="metaopt", add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cn", "--config-name", default=CONFIG)
    return parser


def _hydra_itself(arguments: Sequence[str]) -> int:
    """Hand flags such as `--cfg job`, `--info` and `--hydra-help` to hydra's own command line.

    Some of them run the config, as `--run` does.
    """
    outcomes = []

    @wraps(job)
    def noted(config: DictConfig) -> Outcome:
        outcomes.append(job(config))
        return outcomes[-1]

    flags = [f"--config-dir={folder}" for folder in folders.of_user()]
    sys.argv[1:] = [*arguments, *flags]
    shipped = str(folders.shipped())
    hydra.main(config_path=shipped, config_name=CONFIG, version_base="1.3")(noted)()
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _summary(multirun: Multirun, seconds: float) -> int:
    """Say how many cells of a sweep were computed, and which failed; return the exit code."""
    size, place = multirun.size, multirun.folder
    finished, failed = multirun.of("finished"), multirun.of("failed")
    others = sum(cell.shared and not cell.computed for cell in finished)
    before = sum(not cell.computed for cell in finished) - others
    open_cells = size - len(finished) - len(failed)
    if before == size:
        print(f"{size} of {size} cells were already finished; nothing computed.")
    else:
        print(
            f"{size} cells: {len(finished) - before - others} computed in {seconds:.0f} s, "
            + (f"{others} by another command, " if others else "")
            + f"{before} were already finished, {len(failed)} failed"
            + (f", {open_cells} not finished." if open_cells else ".")
        )
    # One whose folder holds the result of another config, such as an extended run, has one.
    missing = open_cells + sum(not (cell.folder / "result.json").exists() for cell in failed)
    advice = ["The same command computes what is missing."] if missing else []
    if failed:
        print(failures(multirun))
    if len(failed) == size:
        print(" ".join(["Correct the above.", *advice]))
        discard(place)
        return 1
    if advice:
        print(*advice)
    if finished:
        print(f"Next: metaopt-report {shlex.quote(str(place))}")
    return int(len(failed) + open_cells > 0)
