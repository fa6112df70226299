"""`python -m metaopt.cli` is the command `metaopt`."""

from metaopt.cli import main

main()
