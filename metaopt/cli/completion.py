"""What a shell offers after TAB: verbs, groups and their options, keys, and folders of runs.

Hydra's scripts (`metaopt -sc install=bash`) ask `metaopt -sc query=bash`, with the line so far in
COMP_LINE. Hydra's own answer composes the config each time, has no verbs, and is empty where the
line names no problem yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from metaopt.cli import folders
from metaopt.cli.mistakes import LAUNCHERS
from metaopt.cli.verbs import VERBS

FOLDERS = ("ls", "report", "score", "show")
"""Verbs that take a folder of runs."""

COMPOSING = ("check", "profile")
"""Verbs that take groups and keys, as a run does."""

HYDRA = {"hydra/launcher": ("basic", *LAUNCHERS), "hydra/sweeper": ("basic", "tune")}
"""Groups of hydra that a user chooses from."""


def complete(shell: str) -> int:
    """Print what may follow, as the script of a shell reads it."""
    line = os.environ.get("COMP_LINE", "")
    words = [*line.split()[1:], *([""] if line[-1:].isspace() else [])]
    *before, word = words or [""]
    try:
        names = sorted(set(candidates(before, word)))
    except Exception:  # a line that cannot be composed yet; a traceback would be in its way
        names = []
    print(*names, sep="\n" if shell == "fish" else " ")
    return 0


def candidates(before: Sequence[str], word: str) -> list[str]:
    """Return what a word may become.

    Args:
        before: the words before it.
        word: what is typed of it.

    Example:
        >>> candidates(["problem=ridge"], "estimator=implicit_n")
        ['estimator=implicit_neumann', 'estimator=implicit_nystrom']
    """
    verb = before[0] if before else None
    if verb in FOLDERS:
        return _runs(word)
    if verb in VERBS and verb not in COMPOSING:
        return []
    rest = [w for w in folders.use(before) if w[0] != "-" and w not in VERBS]
    key, equals, value = word.partition("=")
    if key == "resume":
        return [f"resume={path}" for path in _runs(value)]
    groups = folders.groups()
    if equals:
        options = HYDRA.get(key) or groups.get(key.partition("@")[0], {})
        listed, comma, _ = word.rpartition(",")
        start = f"{listed}," if comma else f"{key}="
        return _beginning(word, (f"{start}{option}" for option in options))
    names = [*(f"{group}=" for group in (*groups, *HYDRA)), *_keys(rest, word)]
    return _beginning(word, [*names, *(() if before else [*VERBS, "resume="])])


def _beginning(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _keys(rest: Sequence[str], word: str) -> list[str]:
    """Return the keys of the composed config one level below what is typed."""
    above = word.rpartition(".")[0]
    node: Any = _composed(rest)
    for name in filter(None, above.split(".")):
        node = node.get(name) if isinstance(node, Mapping) else None
    prefix = f"{above}." if above else ""
    nodes = node.items() if isinstance(node, Mapping) else ()
    return [f"{prefix}{k}{'.' if isinstance(v, Mapping) else '='}" for k, v in nodes]


def _composed(rest: Sequence[str]) -> Mapping[str, Any]:
    """Return the config of a line, or the keys of every run where it cannot be composed yet."""
    if not any(word.startswith(("problem=", "experiment=")) for word in rest):
        path = folders.shipped() / "train.yaml"
        keys: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: value for name, value in keys.items() if name not in ("defaults", "hydra")}
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from metaopt.cli.loading import CONFIG, composing

    with composing() as loaded:
        config = loaded.compose_config(CONFIG, list(rest), RunMode.RUN, from_shell=False)
    composed: Any = OmegaConf.to_container(config, resolve=False)
    return {name: value for name, value in composed.items() if name != "hydra"}


def _runs(word: str) -> list[str]:
    """Return the folders that a path may become; one that is no run itself ends with a slash."""
    above, _, start = word.rpartition("/")
    place = Path(f"{above}/" if above or word[:1] == "/" else ".")
    prefix = word[: len(word) - len(start)]
    return [
        f"{prefix}{path.name}{'' if (path / 'config.yaml').exists() else '/'}"
        for path in place.iterdir()
        if path.is_dir() and path.name.startswith(start) and path.name[0] != "."
    ]
