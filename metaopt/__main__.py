"""`python -m metaopt` is the command `metaopt`."""

from metaopt.cli import main

main()
