"""The command `metaopt`: one run, a sweep, or the rest of a run."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from metaopt.cli import help as options
from metaopt.cli.composing import COMPOSITION, CONFIG, composing, explanation
from metaopt.cli.jobs import job, resume
from metaopt.runs.errors import ConfigError, report


def main() -> None:
    """Run the command line of `metaopt`."""
    guard(lambda: _dispatch(sys.argv[1:]))


def guard(command: Callable[[], int]) -> None:
    """Run a command and exit with its status, or with a message when it fails."""
    try:
        status = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # such as `metaopt --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except (*COMPOSITION, ConfigError) as error:
        report(ConfigError(explanation(error)) if not isinstance(error, ConfigError) else error)
        status = 1
    except Exception as error:
        report(error)
        status = 1
    sys.exit(status)


def _dispatch(arguments: list[str]) -> int:
    flags, overrides = _flags().parse_known_args(arguments)
    own = _own_options(flags.config_dir)
    if not arguments or flags.help:
        options.show(options.folder(), *own)
        return 0
    resumed = [a.partition("=")[2] for a in arguments if a.startswith("resume=")]
    if resumed:
        return resume(Path(resumed[0]), [a for a in arguments if not a.startswith("resume=")])
    if any(a.startswith("-") for a in overrides):
        _hydra_itself()
        return 0
    overrides += [f"hydra.searchpath=['file://{folder.resolve()}']" for folder in own]
    with composing():
        loaded: Any = GlobalHydra.instance().hydra
        may = own or _names_a_sweep(overrides)  # what composing twice is needed for
        if flags.multirun or (may and loaded.get_mode(CONFIG, overrides) == RunMode.MULTIRUN):
            started = time.monotonic()
            returned = loaded.multirun(
                CONFIG, partial(job, told=set()), [*overrides, "hydra.mode=MULTIRUN"]
            )
            return _summary(returned, time.monotonic() - started)
        outcome = loaded.run(CONFIG, job, overrides).return_value
    return int(outcome.status == "failed")


def _names_a_sweep(overrides: list[str]) -> bool:
    """Return whether an override may set hydra's mode: an experiment, a sweep, a key of hydra's."""
    return any(re.match(r"\+*(experiment|sweep|hydra)\b", text) for text in overrides)


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="metaopt", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir", type=Path)
    return parser


def _own_options(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise ConfigError(f"--config-dir={folder} is no folder.")
    return [folder]


def _hydra_itself() -> None:
    """Hand flags such as `--cfg job`, `--info` and `--hydra-help` to hydra's own command line."""
    hydra.main(config_path=str(options.folder()), config_name=CONFIG, version_base="1.3")(job)()


def _summary(returned: Any, seconds: float) -> int:
    """Say how many cells of a sweep were computed; return the exit code."""
    if not isinstance(returned, list):  # sweepers of plugins return nothing
        return 0
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
        return 1
    if count["failed"]:
        print(advice)
    print(f"Next: metaopt-report {cells[0].folder.parent}")
    return int(count["failed"] > 0)
