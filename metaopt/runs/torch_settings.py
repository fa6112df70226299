"""Settings of torch for a whole process: the number of threads, and a device that is there."""

from __future__ import annotations

import torch

MAX_THREADS = 1024
"""More than any machine has use for; far beyond it the operating system kills the process."""


def prepare_torch(threads: int, device: str) -> None:
    """Set the number of threads and check that the device is there.

    Raises:
        ValueError: threads out of range, or a device that torch does not see.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads must be >= 1 and <= {MAX_THREADS}; got {threads}.")
    torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device).item()  # a meta tensor has no value
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(". ")
        raise ValueError(f"device={device} cannot be used: {reason}. Use device=cpu.") from error
