"""Who watches: a person at a terminal or in a notebook, or a log."""

from __future__ import annotations

import sys


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


def watched() -> bool:
    """Return whether a bar that moves is seen as one: in a log each of its states is a line."""
    return in_notebook() or sys.stderr.isatty()
