"""Mistakes and conditions that are answered with a sentence, and no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class ConfigError(ValueError):
    """A mistake in a config or an argument; the message says what to type instead."""


class ProcessError(ValueError):
    """One of several processes has failed; the message says which, and why."""


class FolderError(ConfigError):
    """A folder cannot be used as it is; the message says what to do."""


class DamagedFileError(FolderError):
    """A file cannot be read, or is not what was written."""


class FolderInUseError(FolderError):
    """Another process writes to the folder, or has just done so."""


class Mistakes:
    """Collects what is wrong with several arguments, to be said at once.

    Example:
        >>> mistakes = Mistakes()
        >>> with mistakes.collected():
        ...     raise ValueError("size must be above 0.")
        >>> mistakes.said
        ['size must be above 0.']
    """

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the message of an error that the block raises."""
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            self.said.append(str(error))

    def refuse(self) -> None:
        """Raise a `ConfigError` with all messages, a line each, if there are any."""
        if self.said:
            raise ConfigError("\n".join(self.said))


def listed(lines: Sequence[str], most: int = 8) -> str:
    """Return the first lines of a list, one below the other and indented, and how many follow."""
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(f"  {line}" for line in [*lines[:most], *more])


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" for the closest of `known` but the word itself, or nothing."""
    others = [n for n in known if n != word and not n.rpartition(".")[2].startswith("_")]
    close = difflib.get_close_matches(word, others, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
