"""What every place that loads a model of transformers shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from metaopt.files.terminal import watched


@contextmanager
def progress_bars(shown: bool | None = None) -> Iterator[None]:
    """Let transformers show its progress bars in a block, or not; a user's own setting returns.

    Args:
        shown: `None` for where a person sees them: not in a log or a pipe.
    """
    # Here, as a replay of recorded answers needs no transformers.
    from transformers.utils import logging

    if shown or (shown is None and watched()) or not logging.is_progress_bar_enabled():
        yield  # a user who has switched them off for the process does not get them back
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
