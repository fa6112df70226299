"""Texts by reference, so that a checkpoint or a log can point at one without holding it."""

from __future__ import annotations

import hashlib

from metaopt.llm.cassette import Cassette

DIGITS = 16
"""Hexadecimal digits of a reference."""

_process: dict[str, str] = {}
"""Texts that were kept before there was a file; references are hashes, so sharing is harmless."""


class Texts:
    """Keeps texts in memory until `move` names a file, and in the file from then on."""

    def __init__(self) -> None:
        self._file: Cassette | None = None
        self._kept: set[str] = set()

    def move(self, file: Cassette | None) -> None:
        """Keep texts in `file` from now on; those kept in memory so far are added to it."""
        if self._file is None and file is not None:
            with file.transaction():
                for ref in self._kept:
                    file.keep(ref, _process[ref])
        self._file, self._kept = file, set()

    def keep(self, text: str) -> str:
        """Return the reference of a text: the first 16 hexadecimal digits of its sha256."""
        ref = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
        if ref not in self._kept:
            if self._file is None:
                _process[ref] = text
            else:
                self._file.keep(ref, text)
            self._kept.add(ref)
        return ref

    def text(self, ref: str) -> str:
        """Return the text of a reference.

        Raises:
            LookupError: neither the file nor this process holds it.
        """
        text = self._file.text(ref) if self._file else None
        text = _process.get(ref) if text is None else text
        if text is None:
            where = self._file.path if self._file else "this process"
            raise LookupError(
                f"{where} has no text {ref}; a run is resumed with the .cassette file beside its "
                f"folder."
            )
        return text
