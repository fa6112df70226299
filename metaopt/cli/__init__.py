"""The command line: `metaopt` and its verbs. Nothing else imports hydra.

In reading order: `verbs` (the table of commands), `command` (a run or a sweep), `folders` (where
YAML and Python are looked for), `loading`, `composing`, `mistakes` (what to answer to a wrong key),
`schema` (a config against its constructors), `jobs` (one config in its folder), `sweep`, then
`cells`, `launching` and `cell_table` (its cells), then one file for each other command. This
file and `help` import nothing heavy: the help answers at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

from metaopt.cli import torchrun
from metaopt.cli.verbs import VERBS, call


def main() -> None:
    """Run the command line of `metaopt`: a verb of the table, the help, a run or a sweep."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in VERBS:
        verb, *rest = arguments
        guard(lambda: call(verb, rest))
    elif arguments[:1] == ["-sc"] and (shell := re.fullmatch("query=(.*)", arguments[-1])):
        from metaopt.cli.completion import complete

        guard(lambda: complete(shell[1]))
    elif not arguments or {"-h", "--help"} & {*arguments}:
        from metaopt.cli.help import show

        guard(lambda: show(arguments) if torchrun.is_first() else 0)
    else:
        guard(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    from metaopt.cli.command import run

    return run(arguments)


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
    except Exception as error:
        from metaopt.cli.composing import cause
        from metaopt.runs.errors import report

        report(cause(error))
        status = 1
    sys.exit(status)


def __getattr__(name: str) -> Callable[[], None]:
    """Return the console script `metaopt-<name>`: each verb of the table is a command, too."""
    if name not in VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lambda: guard(lambda: call(name, sys.argv[1:]))
