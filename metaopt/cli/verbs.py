"""The table of commands: each is `metaopt VERB ...` and, as a script, `metaopt-VERB ...`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from metaopt.cli import torchrun


class Verb(NamedTuple):
    """A command.

    Args:
        function: module and name of what takes the arguments and returns the exit code; imported
            when it is called, so that the help and the other commands do not wait for it.
        usage: what follows the verb.
        text: what it does, for the help.
        script: whether it is also installed as `metaopt-VERB`.
    """

    function: str
    usage: str
    text: str
    script: bool = True


VERBS = {
    "check": Verb(
        "metaopt.cli.checking:main", "problem=NAME", "each estimator against an independent oracle"
    ),
    "profile": Verb(
        "metaopt.cli.profiling:main", "problem=NAME", "seconds and memory of a run, part by part"
    ),
    "report": Verb("metaopt.report.command:main", "FOLDER", "tables and figures of finished runs"),
    "new": Verb(
        "metaopt.cli.new_problem:main", "NAME", "a problem of your own: Python, YAML and test"
    ),
    "label": Verb(
        "metaopt.cli.labelling:main", "SOLUTIONS FOLDER", "step labels for solutions, by rollouts"
    ),
    "score": Verb(
        "metaopt.cli.scoring:main", "RUN FILE", "rows of a file, by what a run has learned"
    ),
    "fetch": Verb("metaopt.data.fetch:main", "NAME", "a public data set or model, by its hash"),
    "tables": Verb(
        "metaopt.cli.recomputing:main", "[TABLE]", "recompute and check committed tables", False
    ),
    "ls": Verb("metaopt.cli.listing:ls", "[FOLDER]", "the runs of a folder and their state", False),
    "show": Verb("metaopt.cli.listing:show", "RUN", "one run: what it is and what came out", False),
}


def call(verb: str, arguments: Sequence[str]) -> int:
    """Call a verb and return its exit code; of torchrun's processes the first does it."""
    if not torchrun.is_first():
        return 0
    module, _, name = VERBS[verb].function.partition(":")
    return int(getattr(import_module(module), name)(arguments))
