"""Mistakes and conditions that are answered with a sentence, and no traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in a config or an argument; the message says what to type instead."""


class FolderError(ConfigError):
    """A folder cannot be used as it is; the message says what to do."""


class DamagedFileError(FolderError):
    """A file cannot be read, or is not what was written."""


class FolderInUseError(FolderError):
    """Another process writes to the folder."""
