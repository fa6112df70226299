"""What the environment says of the processes that torchrun has started."""

from __future__ import annotations

import os


def processes() -> int:
    """Return how many processes torchrun has started, 1 without it.

    `WORLD_SIZE` alone does not say it: schedulers set it for single programs, too.
    """
    number = os.environ.get("WORLD_SIZE", "")
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "RANK" in os.environ
    return max(int(number), 1) if launched and number.isdecimal() else 1


def is_first() -> bool:
    """Return whether this process is the first of them, or the only one."""
    return processes() == 1 or os.environ.get("RANK") == "0"
