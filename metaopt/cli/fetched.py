"""What a sweep reads that `metaopt-fetch` brings, looked for before its first cell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf

from metaopt.cli import folders
from metaopt.cli.composing import COMPOSITION
from metaopt.data.folder import data_sets, find_data, models
from metaopt.files.errors import ConfigError

READ_FROM = ("source", "backbone", "path", "tokenizer")
"""Keys whose values are names that `metaopt-fetch` knows, among folders and ids."""


def refuse_unfetched(hydra: Hydra, name: str, cells: Sequence[Sequence[str]]) -> None:
    """Raise a `ConfigError` if a cell reads a model or a data set that nobody has fetched.

    Args:
        hydra: loaded.
        name: of the config.
        cells: overrides of each that differs from the others in more than numbers.

    Cost: nothing where all is there; else a composition of each cell.
    """
    lacking = [needed for needed in unfetched(hydra, name, cells) if needed]
    names = sorted(set().union(*lacking))
    if names:
        commands = fetching(names)
        some = len(lacking) < len(cells)
        raise ConfigError(
            f"{' and '.join(names)} must be fetched first"
            + (f", for {len(lacking)} of {len(cells)} methods" if some else "")
            + f": {commands}"
            + (" (or choose others with method=NAME,NAME)" if some else "")
        )


def unfetched(hydra: Hydra, name: str, cells: Sequence[Sequence[str]]) -> list[set[str]]:
    """Return the models and data sets that each cell reads and nobody has fetched."""
    absent = {known for known in (*models(), *data_sets()) if not _is_there(known)}
    if not absent:
        return [set() for _ in cells]
    return [_read(hydra, name, cell) & absent for cell in cells]


def fetching(names: Iterable[str]) -> str:
    """Return the command that fetches models and data sets."""
    return " && ".join(f"metaopt-fetch {each}" for each in sorted(names))


def one_of_each(override: Override) -> Override:
    """Return an axis with its first value alone, unless the values decide what is read."""
    key = override.key_or_group
    decides = key.partition("@")[0] in folders.groups() or key.rpartition(".")[2] in READ_FROM
    if decides or not override.is_sweep_override():
        return override
    interval: Any = override.value() if override.is_interval_sweep() else None
    value = interval.start if interval else next(iter(override.sweep_string_iterator()), "null")
    return OverridesParser.create().parse_override(f"{override.get_key_element()}={value}")


def _is_there(name: str) -> bool:
    paths = [f"models/{name}"] if name in models() else data_sets()[name]["files"]
    try:
        return all(find_data(path, name) for path in paths)
    except FileNotFoundError:
        return False


def _read(hydra: Hydra, name: str, cell: Sequence[str]) -> set[str]:
    """Return what the config of a cell names; nothing of one that the cell itself will refuse."""
    try:
        config = hydra.compose_config(name, list(cell), RunMode.RUN)
    except COMPOSITION:
        return set()
    plain: Any = OmegaConf.to_container(config, resolve=False)
    plain.pop("hydra", None)
    client = OmegaConf.select(config, "problem.client.mode", throw_on_resolution_failure=False)
    keys = [k for k in READ_FROM if k != "path" or client != "replay"]  # which asks no model
    return {value for key, value in _leaves(plain) if key in keys and isinstance(value, str)}


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, key)
    else:
        yield key, node
