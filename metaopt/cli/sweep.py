"""The cells of a sweep: one product of axes, or the union of several.

The key `methods` of an experiment lists what its table compares. An entry is the name of a method,
or overrides of which each may have several values:

    methods:
      - rollout_length/mbpo
      - method: rollout_length/constant
        optimizer.function.value: [0, 1, 4, 8, 16, 32]

Each entry makes the product of its values with the axes of `hydra.sweeper.params`; the command line
goes over both, and its `method=` takes the place of the list.

With `hydra/sweeper=tune` the values are searched instead: see `metaopt.cli.study`.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf

from metaopt.cli import folders, torchrun
from metaopt.cli.cells import CellTask, Multirun
from metaopt.cli.fetched import one_of_each, refuse_unfetched
from metaopt.cli.jobs import Outcome, remove_empty
from metaopt.cli.launching import FollowedLauncher, LauncherError
from metaopt.engine.seeds import seeds_from, seeds_in_words
from metaopt.files.errors import ConfigError

PLAIN = re.compile(r"[\w./+-]+")
"""Texts that hydra's grammar of overrides reads without quotes."""


def union(
    axes: Sequence[Override], given: Sequence[Override], methods: Sequence[Any]
) -> list[list[str]]:
    """Return the overrides of every cell.

    Args:
        axes: those of `hydra.sweeper.params`.
        given: those of the command line.
        methods: the entries of the list; one that is empty for a plain product.
    """
    fixed = {o.get_key_element() for o in given}
    product = {o.get_key_element(): values(o) for o in (*axes, *given)}
    cells: list[tuple[str, ...]] = []
    for entry in [{}] if "method" in fixed else map(_entry, methods):
        first = {k: v for k, v in entry.items() if k not in fixed}
        rest = {k: v for k, v in product.items() if k not in first}
        cells += itertools.product(*{**first, **rest}.values())
    return [list(cell) for cell in dict.fromkeys(cells)]


def values(override: Override) -> list[str]:
    """Return each value of an override as an override of its own.

    Raises:
        ConfigError: it is an interval, which has no end of values.
    """
    key = override.get_key_element()
    if override.is_interval_sweep():
        raise ConfigError(
            f"{override.input_line} is a range to search: add hydra/sweeper=tune, or list values "
            f"as {key}=a,b."
        )
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def compares(overrides: Sequence[str]) -> bool:
    """Return whether a sweep's cells differ in more than the values of keys, as a table's do.

    Raises:
        ConfigError: an axis has no value.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        finite = override.is_sweep_override() and not override.is_interval_sweep()
        if finite and not values(override):
            raise ConfigError(
                f"{override.input_line} has no value, so that there is nothing to run."
            )
    keys = {o.key_or_group.partition("@")[0]: o.is_sweep_override() for o in parsed}
    several = any(sweeps and key in folders.groups() for key, sweeps in keys.items())
    return several or not {"experiment", "methods"}.isdisjoint(keys)


def _entry(entry: Any) -> dict[str, list[str]]:
    """Return {key: its overrides} of one entry of `methods`.

    Raises:
        ConfigError: it is neither a name nor a mapping.
    """
    if isinstance(entry, str):
        entry = {"method": entry}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"An entry of methods is a name or a mapping of overrides; got {entry}.")
    lists = {k: v if isinstance(v, list) else [v] for k, v in entry.items()}
    return {k: [f"{k}={_quoted(value)}" for value in v] for k, v in lists.items()}


def _quoted(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    return value if PLAIN.fullmatch(value) else "'" + value.replace("'", r"\'") + "'"


def multirun(
    hydra: Hydra,
    name: str,
    overrides: list[str],
    task: Callable[..., Outcome],
    chosen: Sequence[Sequence[str]] = (),
) -> Multirun | int:
    """Run a sweep with what the config says: axes, the list `methods`, or a search.

    Args:
        hydra: loaded.
        name: of the config.
        overrides: those of the command line.
        task: runs one composed config.
        chosen: overrides of the cells to run, in addition to `overrides`, if not all.

    Returns:
        The cells, also where the launcher has ended before they did; of a search its exit code.
    """
    config = hydra.compose_config(
        name, overrides, with_log_configuration=True, run_mode=RunMode.MULTIRUN
    )
    try:
        _refuse_launcher(config)
        if chosen:
            return _run_cells(hydra, config, name, _union_sweeper(config, chosen), task)
        refuse_unfetched(hydra, name, _methods_alone(config, overrides))
        return _swept(hydra, config, name, overrides, task)
    except Exception:
        discard(Path(config.hydra.sweep.dir))
        raise


def _refuse_launcher(config: Any) -> None:
    """Raise a `ConfigError` for a launcher that would start processes beside torchrun's."""
    launcher = config.hydra.launcher._target_
    if torchrun.processes() > 1 and not launcher.startswith("hydra._internal."):
        raise ConfigError(
            f"hydra.launcher is {launcher}, which starts processes of its own. Under torchrun the "
            f"cells run one after the other, each in all processes: drop hydra/launcher, or start "
            f"the command without torchrun."
        )


def _methods_alone(config: Any, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of one cell of each method: the first seed, the first number."""
    parse = OverridesParser.create().parse_overrides
    params = [f"{k}={v}" for k, v in (config.hydra.sweeper.params or {}).items()]
    given = [o for o in parse(list(overrides)) if not o.key_or_group.startswith("hydra.")]
    return union([*map(one_of_each, parse(params))], [*map(one_of_each, given)], _methods(config))


def _refuse_overlap(config: Any, overrides: Sequence[str]) -> None:
    """Raise a `ConfigError` if two cells of a sweep would train the same seed of one method.

    A report refuses such runs, since one seed would count twice.
    """
    params = [f"{k}={v}" for k, v in (config.hydra.sweeper.params or {}).items()]
    axes, given = (_seed_axes(words) for words in (params, overrides))
    for entry in map(_entry, _methods(config)):
        cells = {**axes, **entry, **given}
        lists = [cells.get(key, [f"{key}={config.get(key)}"]) for key in SEEDS]
        pairs = dict.fromkeys(itertools.product(*lists))
        trained = Counter(s for pair in pairs for s in _seeds(*pair))
        if twice := sorted(s for s, times in trained.items() if times > 1):
            shown = (f"{key}={','.join(map(_value, cells[key]))}" for key in SEEDS if key in cells)
            raise ConfigError(
                f"{' '.join(shown)}: {seeds_in_words(twice[0], twice)} would be trained by several "
                f"runs, and a report counts no seed twice. Let no two runs share a seed, such as "
                f"seed=0,2,4 with seeds=2."
            )


SEEDS = ("seed", "seeds")
"""Keys that say which seeds a run trains."""


def _seed_axes(overrides: Sequence[str]) -> dict[str, list[str]]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {o.get_key_element(): values(o) for o in parsed if o.get_key_element() in SEEDS}


def _seeds(*overrides: str) -> Sequence[int]:
    """Return the seeds of a run; none where the values are a mistake, which the run names."""
    try:
        seed, seeds = (yaml.safe_load(_value(override)) for override in overrides)
        if type(seed) is not int:
            return ()
        return seeds_from(seed, None if seeds == "None" else seeds) or (seed,)
    except (TypeError, ValueError, yaml.YAMLError):
        return ()


def _value(override: str) -> str:
    return override.partition("=")[2]


def discard(folder: Path) -> None:
    """Remove the folder of a sweep in which no cell has begun: it holds what hydra writes first."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
        (folder / "multirun.yaml").unlink()
        remove_empty(folder)


def _swept(
    hydra: Hydra, config: Any, name: str, overrides: list[str], task: Callable[..., Outcome]
) -> Multirun | int:
    if not _searches(config):
        _refuse_overlap(config, overrides)
        return _run_cells(hydra, config, name, _union_sweeper(config), task)
    sweeper = instantiate(config.hydra.sweeper)
    with _followed(hydra, config, name, sweeper, sweeper.multirun, task):
        return int(sweeper.sweep(list(config.hydra.overrides.task)))


def _run_cells(
    hydra: Hydra, config: Any, name: str, sweeper: Sweeper, task: Callable[..., Outcome]
) -> Multirun:
    """Run all cells of a sweeper, and return them also where a launcher ends early."""
    multirun = Multirun()
    with _followed(hydra, config, name, sweeper, multirun, task):
        try:
            sweeper.sweep(list(config.hydra.overrides.task))
        except LauncherError as error:
            print(f"metaopt: {error}", file=sys.stderr)
        except (KeyboardInterrupt, SystemExit):
            advice = "What has finished is kept; the same command computes the rest."
            print(advice, file=sys.stderr)
            raise
    return multirun


@contextmanager
def _followed(
    hydra: Hydra,
    config: Any,
    name: str,
    sweeper: Any,
    multirun: Multirun,
    task: Callable[..., Outcome],
) -> Iterator[None]:
    """Set a sweeper up; show the cells that it runs in the block, and collect them."""
    callbacks = Callbacks(config)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    names: dict[int, str] = {}
    cell = CellTask(task, multirun.command, Path.cwd(), folders.given(), names)
    sweeper.setup(hydra_context=context, task_function=cell, config=config)
    sweeper.launcher = FollowedLauncher(
        sweeper.launcher, hydra.config_loader, config, multirun, names
    )
    callbacks.on_multirun_start(config=config, config_name=name)
    with sweeper.launcher.display.shown():
        yield
    callbacks.on_multirun_end(config=config, config_name=name)


SEARCH = "metaopt.cli.study.OptunaSweeper"
"""The sweeper of `hydra/sweeper=tune`. Hydra makes those of its own plugins only."""


def _searches(config: Any) -> bool:
    """Return whether a sweep is a search.

    Raises:
        ConfigError: Optuna is missing or too old, or the sweeper is one of a plugin.
    """
    target = config.hydra.sweeper._target_
    if target == SEARCH:
        try:
            version = metadata.version("optuna")
        except metadata.PackageNotFoundError:
            version = "none"
        if version == "none" or int(version.partition(".")[0]) < 4:
            raise ConfigError(
                f"hydra/sweeper=tune needs optuna 4 or later; installed is {version}. Run "
                f"`pip install 'metaopt[sweep]'`."
            )
        return True
    if not target.startswith("hydra._internal."):
        raise ConfigError(
            f"hydra.sweeper is {target}, of a plugin whose trials cannot be resumed or pruned "
            f"here; use hydra/sweeper=tune, or leave it out to run every combination."
        )
    return False


def _union_sweeper(config: Any, chosen: Sequence[Sequence[str]] = ()) -> Sweeper:
    """Return hydra's sweeper, with the cells of axes and `methods`, or those that were chosen."""
    # Not at the top: hydra's search for plugins loads that file again, with another class in it.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = dict(config.hydra.sweeper.params or {})
    listed = _methods(config)

    def split(parsed: Sequence[Override], most: int | None) -> list[list[list[str]]]:
        """Return all cells in one batch, unless the config says how many a launcher gets."""
        each = union(parsed[: len(params)], parsed[len(params) :], listed)
        if chosen:
            given = [word for override in parsed[len(params) :] for word in values(override)]
            each = [[*cell, *given] for cell in chosen]
        return list(BasicSweeper.split_overrides_to_chunks(each, most))

    sweeper = BasicSweeper(max_batch_size=config.hydra.sweeper.max_batch_size, params=params)
    sweeper.split_arguments = split  # type: ignore[method-assign, assignment, unused-ignore]
    # The launcher composes each cell before it runs one, to know its folder: not twice.
    sweeper.validate_batch_is_legal = lambda batch: None  # type: ignore[method-assign]
    return sweeper


def _methods(config: Any) -> list[Any]:
    methods: Any = config.get("methods") or [{}]
    if OmegaConf.is_config(methods):  # labels keep what they refer to for the cells to resolve
        methods = OmegaConf.to_container(methods, resolve=False)
    return list(methods)


def cells(config: Any, method: str | None = None) -> list[list[str]]:
    """Return the overrides of every cell of an experiment's config with its node `hydra`.

    Args:
        config: the experiment's.
        method: one that takes the place of those that the experiment compares.
    """
    parse = OverridesParser.create().parse_overrides
    axes = [f"{k}={v}" for k, v in (config.hydra.sweeper.params or {}).items()]
    given = [] if method is None else [f"method={method}"]
    return union(parse(axes), parse(given), _methods(config))
