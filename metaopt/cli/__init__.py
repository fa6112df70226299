"""The command line: `metaopt` and `metaopt-check`. Nothing else imports hydra."""

from metaopt.cli.checking import check
from metaopt.cli.command import main

__all__ = ["check", "main"]
