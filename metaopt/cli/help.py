"""What `metaopt --help` prints: one screen, and the rest by group or by option."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from metaopt.cli import folders
from metaopt.cli.verbs import VERBS

PURPOSE = (
    "metaopt: bi-level optimisation. An inner optimisation trains something; an outer one steers "
    "it by weights, labels, penalties, rollout lengths or texts, with hypergradients or search."
)

TRY = {
    "metaopt problem=ridge": "one run, in runs/ridge/<time>",
    "metaopt -m problem=ridge estimator=unroll,implicit seed=0,1": "a sweep, in results/ridge",
    "metaopt experiment=ridge/estimators": "all cells of a table (rerun to resume)",
    "metaopt experiment=ridge/tune": "a search of hyperparameters (rerun to go on)",
    "metaopt-report results/ridge": "tables and figures of finished runs",
}

FIRST = ("problem", "estimator", "optimizer", "method", "experiment")
"""The groups that come first in the help."""

MORE = {
    "metaopt --help problem": "the options of a group, a line each",
    "metaopt --help problem=ridge": "the keys of an option, with comments",
    "metaopt --help train": "the keys of every run: outer_steps, seed, device, ...",
    "metaopt --cfg job problem=ridge": "the composed config; run nothing",
    "metaopt resume=<run folder>": "continue from the last checkpoint",
    "metaopt --config-dir conf problem=mine": "options of your own, and the Python next to them",
    "metaopt --hydra-help, --info": "Hydra's own flags",
    'eval "$(metaopt -sc install=bash)"': "completion by TAB, for this shell",
}


def show(arguments: Sequence[str]) -> int:
    """Print the help that the arguments ask for: the overview, groups, or options.

    Raises:
        ValueError: there is no such group or option; names the nearest.
    """
    topics = [a for a in folders.use(arguments) if not a.startswith("-")]
    groups = folders.groups()
    if not topics:
        print(overview(groups))
        return 0
    for at, topic in enumerate(topics):
        group, equals, option = topic.partition("=")
        if at:
            print()
        if topic == "train":
            print((folders.shipped() / "train.yaml").read_text(encoding="utf-8"), end="")
        elif not equals:
            _group(group, groups)
        elif group.partition("@")[0] in groups:
            _option(group.partition("@")[0], option, groups)
    return 0


PART_GROUPS = ("data", "model", "scoring", "training_loss", "weights")
"""Groups whose options are parts of a problem."""


def overview(groups: Mapping[str, Mapping[str, str]]) -> str:
    """Return the one screen of `metaopt --help`."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 110) if sys.stdout.isatty() else 110
    lines = [*textwrap.wrap(PURPOSE, width), "", "Try"]
    lines += _columns(TRY, width)
    lines += ["", "Choose with group=option"]
    order = sorted(groups, key=lambda g: FIRST.index(g) if g in FIRST else len(FIRST))
    lines += [f"  {group:<14}{_one_line(families(groups[group]), width - 16)}" for group in order]
    lines += ["", "Other commands, as `metaopt VERB` or `metaopt-VERB`"]
    lines += _columns({f"{name} {verb.usage}": verb.text for name, verb in VERBS.items()}, width)
    lines += ["", "More"]
    lines += _columns(MORE, width)
    return "\n".join(lines)


def families(options: Mapping[str, str]) -> list[str]:
    """Return the names of a group's options; those of a family as `family/*`."""
    names = [option for option in options if "/" not in option]
    return [*names, *dict.fromkeys(o.partition("/")[0] + "/*" for o in options if "/" in o)]


def _columns(entries: Mapping[str, str], width: int) -> list[str]:
    """Return names and texts in two columns; a longer text goes on in its column."""
    column = 2 + max(len(name) for name in entries if len(name) < 44) + 2
    lines = []
    for name, text in entries.items():
        first, *rest = textwrap.wrap(text, max(width - column, 20))
        if len(name) + 4 <= column:
            lines.append(f"  {name}".ljust(column) + first)
        else:
            lines += [f"  {name}", " " * column + first]
        lines += [" " * column + line for line in rest]
    return lines


def _one_line(names: Sequence[str], width: int) -> str:
    """Return as many names as fit, and how many more there are."""
    line = " ".join(names)
    for count in range(len(names) - 1, -1, -1):
        if len(line) <= width:
            break
        line = " ".join([*names[:count], f"... ({len(names) - count} more)"])
    return line


def _group(group: str, groups: Mapping[str, Mapping[str, str]]) -> None:
    if group not in groups:
        raise ValueError(f"There is no group {group!r}. There are {', '.join(groups)}, and train.")
    # A part of a problem is chosen at its place in the problem, as data@problem.task.data=OPTION.
    place = f"{group}@problem.<key>" if group in PART_GROUPS else group
    print(f"Group {group}: choose with {place}=OPTION; keys with `metaopt --help {group}=OPTION`")
    if group in PART_GROUPS:
        print("The <key> is in the defaults that `metaopt --help problem=NAME` shows.")
    options = groups[group]
    column = max(map(len, options)) + 4
    for name, text in options.items():
        print(f"  {name:<{column}}{text}".rstrip())


def _option(group: str, option: str, groups: Mapping[str, Mapping[str, str]]) -> None:
    path = folders.file_of(group, option)
    if path is None:
        from metaopt.cli.mistakes import unknown_option

        raise ValueError(unknown_option(group, option, groups.get(group, {})))
    print(f"# {group}={option}, from {path}")
    text = path.read_text(encoding="utf-8")
    print(re.sub(r"^# @package .*\n", "", text), end="")
