"""The command `metaopt`: one run, a sweep, or the rest of a run."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.types import RunMode

from metaopt.cli import folders
from metaopt.cli.composing import CONFIG, composing
from metaopt.cli.jobs import job, resume
from metaopt.cli.keys import check_name
from metaopt.cli.sweep import compares, discard, multirun
from metaopt.files.errors import ConfigError


def run(arguments: Sequence[str]) -> int:
    """Run the config that the arguments compose and return the exit code.

    Raises:
        ConfigError: torchrun has started several processes.
    """
    if processes := _of_torchrun():
        raise ConfigError(
            f"the command runs in one process, and WORLD_SIZE={processes} says that torchrun has "
            f"started {processes}, each of which would do the whole run. Start it without "
            'torchrun, or unset WORLD_SIZE. The docs\' page "Several processes" shows how a '
            "program shares out batches, and seeds=<number> trains several seeds together."
        )
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
            task = partial(job, printed=set(), shared=compares(overrides))
            returned = multirun(loaded, flags.config_name, [*overrides, MULTIRUN], task)
            if isinstance(returned, int):  # a search has said what it found
                return returned
            return _summary(returned, time.monotonic() - started)
        outcome = loaded.run(flags.config_name, job, overrides).return_value
    return int(outcome.status == "failed")


def _of_torchrun() -> str | None:
    """Return how many processes torchrun has started, or `None` where it has started one at most.

    `WORLD_SIZE` alone does not say it: schedulers set it for single programs, too.
    """
    processes = os.environ.get("WORLD_SIZE", "")
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "RANK" in os.environ
    several = processes.isdecimal() and int(processes) > 1
    return processes if launched and several else None


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
    """Hand flags such as `--cfg job`, `--info` and `--hydra-help` to hydra's own command line."""
    flags = [f"--config-dir={folder}" for folder in folders.of_user()]
    sys.argv[1:] = [*arguments, *flags]
    shipped = str(folders.shipped())
    hydra.main(config_path=shipped, config_name=CONFIG, version_base="1.3")(job)()
    return 0


def _summary(returned: Any, seconds: float) -> int:
    """Say how many cells of a sweep were computed; return the exit code."""
    cells = [r.return_value for batch in returned for r in batch]
    count = {s: sum(c.status == s for c in cells) for s in ("computed", "complete", "failed")}
    if count["complete"] == len(cells):
        print(f"{len(cells)} of {len(cells)} cells were already complete; nothing computed.")
    else:
        print(
            f"{len(cells)} cells: {count['computed']} computed in {seconds:.0f} s, "
            f"{count['complete']} were already complete, {count['failed']} failed."
        )
    advice = "The same command computes what is missing."
    if count["failed"] == len(cells):
        print(f"Correct the above. {advice}")
        discard(cells[0].folder.parent)
        return 1
    if count["failed"]:
        print(advice)
    print(f"Next: metaopt-report {cells[0].folder.parent}")
    return int(count["failed"] > 0)
