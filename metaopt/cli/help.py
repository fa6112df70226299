"""What `metaopt --help` prints: groups, options and keys, read from the YAML files themselves."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import metaopt

USAGE = {
    "metaopt problem=<problem> [group=option] [key=value] ...": "one run, in runs/<name>/<time>",
    "metaopt -m problem=<problem> key=a,b,c ...": "a sweep, in results/<name>/<overrides>",
    "metaopt experiment=<paper>/<table>": "a table of a paper; again: the rest of it",
    "metaopt resume=<run folder>": "continue from the last checkpoint",
    "metaopt --config-dir=<folder> ...": "options of your own, beside the shipped",
    "metaopt --cfg job problem=<problem> ...": "print the config, run nothing",
    "metaopt-report <folder>": "tables and figures of finished runs",
    "metaopt-check problem=<problem>": "each estimator against an exact one",
}

KEY = re.compile(r"^(\w+): (.*?)\s+# (.*)$")

INDENT = 34
"""Column of the texts beside options and keys; a longer name has a line of its own."""


def folder() -> Path:
    """Return the folder of the shipped YAML files, in an installation or in a source tree."""
    package = Path(metaopt.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def groups(root: Path) -> dict[str, dict[str, str]]:
    """Return {group: {option: its line of help}} for every YAML file below `root`."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(root.rglob("*.yaml")):
        group, _, option = path.relative_to(root).with_suffix("").as_posix().partition("/")
        if option and group != "local":
            found.setdefault(group, {})[option] = help_of(path)
    return found


def help_of(path: Path) -> str:
    """Return the first comment of a YAML file that is not a directive such as `@package`."""
    lines = (line.lstrip("# ").strip() for line in _head(path))
    return next((line for line in lines if line and not line.startswith("@")), "")


def keys(root: Path) -> list[tuple[str, str, str]]:
    """Return (key, default, help) of every top-level key of `train.yaml`."""
    matches = (KEY.match(line) for line in (root / "train.yaml").read_text().splitlines())
    return [(m[1], m[2], m[3]) for m in matches if m]


def show(*roots: Path) -> None:
    """Print usage, groups with their options, and keys; names are never cut or broken.

    Args:
        roots: the shipped folder, whose keys are listed, and then folders of one's own.
    """
    merged: dict[str, dict[str, str]] = {}
    for root in roots:
        for group, found in groups(root).items():
            merged.setdefault(group, {}).update(found)
    _section(USAGE)
    for group, found in merged.items():
        print(f"\nGroup {group}")
        _section({f"  {group}={option}": text for option, text in found.items()})
    print("\nKeys, with their defaults")
    _section({f"  {key}={default}": text for key, default, text in keys(roots[0])})


def _section(entries: Mapping[str, str]) -> None:
    """Print names and texts in two columns: wrapped on a terminal, one line each in a pipe."""
    column = max(map(len, entries)) + 2
    width = None
    if sys.stdout.isatty():
        column = min(column, INDENT)
        width = max(shutil.get_terminal_size().columns, 2 * INDENT) - column
    for name, text in entries.items():
        lines = textwrap.wrap(text, width) if width else [text]
        beside = len(name) <= column - 2
        print(f"{name:<{column}}{lines[0] if lines else ''}".rstrip() if beside else name)
        for line in lines[beside:]:
            print(" " * column + line)


def _head(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            return
        yield line
