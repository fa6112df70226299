"""From a resolved config to the run that it describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException

from metaopt.cli import folders
from metaopt.cli.composing import cause, parts
from metaopt.cli.keys import PARTS, check_keys
from metaopt.cli.ranks import with_processes
from metaopt.cli.schema import check
from metaopt.cli.trust import needed
from metaopt.files.errors import ConfigError
from metaopt.runs.description import refuse_other, to_config
from metaopt.runs.progress import announced, checks, watcher
from metaopt.runs.run import SETTINGS, Prune, Run, Watch
from metaopt.runs.selection import Selection
from metaopt.runs.torch_settings import prepare_torch


def build(
    folder: Path,
    config: dict[str, Any],
    overrides: Sequence[str] = (),
    watch: Watch | None = watcher,
    given: Mapping[str, Any] | None = None,
    prune: Prune | None = None,
) -> Run:
    """Make the run that a config describes.

    Args:
        folder: of the run.
        config: resolved.
        overrides: what the command line changed.
        watch, prune: see `metaopt.runs.run.Run`.
        given: parts by name (`PARTS`) that are not to be made from the config.

    Raises:
        ConfigError: the config cannot be built; says why.
    """
    check_keys(config)
    check(config)
    selection = Selection(config.get("early_stopping"), config.get("keep_best"))
    with worded():
        prepare_torch(config["threads"], config["device"])
        watched = watch is watcher  # and not a heartbeat, which says it to the driver of a multirun
        with announced("Preparing the problem: data, models and what is read once.", watched):
            made = parts(config, PARTS)
        for name, part in (given or {}).items():
            refuse_other(folder, name, to_config(made[name]), part)
            made[name] = part
        with announced(checks(made["problem"], made["estimator"], "problem."), watched):
            engine = made["engine"](made["problem"], made["estimator"], made["optimizer"])
        config = with_processes(config, engine)
        return Run(
            engine,
            folder,
            config,
            made["tracker"],
            overrides,
            config_dirs=folders.given(),
            trust=needed(folder, config),
            **{name: config[name] for name in SETTINGS},
            watch=watch,
            prune=prune,
            selection=selection,
        )


@contextmanager
def worded() -> Iterator[None]:
    """Turn a user's mistakes in a config, found where its parts are made, into a `ConfigError`."""
    try:
        yield
    except (InstantiationException, ValueError) as error:
        inner = cause(error)
        missing = isinstance(inner, FileNotFoundError) and inner.errno is None  # of this package
        mistake = missing or isinstance(inner, ValueError)
        raise (ConfigError(str(inner)) if mistake else inner) from error
