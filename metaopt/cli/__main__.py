"""`python -m metaopt.cli` is the command `metaopt`."""

from metaopt.cli.command import main

main()
