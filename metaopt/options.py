"""What `metaopt --help` prints: groups, options and keys, read from the YAML files themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

import metaopt

USAGE = """\
metaopt problem=<problem> [group=option] [key=value] ...   one run, in runs/<name>/<time>
metaopt -m problem=<problem> key=a,b,c ...                 a sweep, in results/<name>/<overrides>
metaopt experiment=<paper>/<table>                         a table of a paper; again: the rest of it
metaopt resume=<run folder>                                continue from the last checkpoint
metaopt --config-dir=<folder> ...                          options of your own, beside the shipped
metaopt --cfg job problem=<problem> ...                    print the config, run nothing
metaopt-report <folder>                                    tables and figures of finished runs
metaopt-check problem=<problem>                            each estimator against an exact one"""

KEY = re.compile(r"^(\w+): (.*?)\s+# (.*)$")


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


def show(root: Path) -> None:
    """Print usage, groups with their options, and keys."""
    console = Console(highlight=False)
    print(USAGE + "\n")
    table = Table("group=option", "what it is", title="Groups", title_justify="left", box=None)
    for group, options in groups(root).items():
        for option, text in options.items():
            table.add_row(f"{group}={option}", text)
        table.add_row("")
    console.print(table)
    table = Table("key", "default", "what it is", title="Keys", title_justify="left", box=None)
    for row in keys(root):
        table.add_row(*row)
    console.print(table)


def _head(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            return
        yield line
