"""Made-up languages, code and noise, in rows of 64 characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

ALPHABET = "abcdefghijklmnopqrstuvwxyz .,="
LETTERS = ALPHABET[:26]
LENGTH = 64
"""Characters of a row."""

CODE = (
    "def {a}.{b},", "return {a}.{b}", "if {a} == {b}.", "for {a} in {b}.", "{a} = {b}.{a},",
    "import {a}", "while {a} == {b}.", "class {a}.{b}.",
)  # fmt: skip


class Language(Protocol):
    """What rows are drawn from."""

    def rows(self, draw: Generator, count: int) -> list[str]:
        """Return rows of `LENGTH` characters of the alphabet."""
        ...


class Ordinary:
    """150 words of one to three syllables with Zipf's frequencies, independent of each other."""

    def __init__(self, draw: Generator) -> None:
        syllables = [c + v for c in "tnsrlhdmcf" for v in "eaoi"]
        words: dict[str, None] = {}
        while len(words) < 150:
            words["".join(draw.choice(syllables, draw.integers(1, 4)))] = None
        self.words = list(words)
        self._below = (1.0 / np.arange(1, 151)).cumsum() / (1.0 / np.arange(1, 151)).sum()

    def rows(self, draw: Generator, count: int) -> list[str]:
        """Return rows of words, some of them with a mark."""

        def word() -> str:
            k, mark = self._below.searchsorted(draw.random()), draw.random()
            word: str = self.words[k]
            return word + (". " if mark < 0.1 else ", " if mark < 0.2 else " ")

        return cut(word, draw, count)


class Hard:
    """Words of two to four syllables, each drawn at random: the loss of no model is low.

    A syllable is one of 20 consonants, one of 6 vowels and one of 15 consonants.
    """

    def rows(self, draw: Generator, count: int) -> list[str]:
        """Return rows of words."""
        parts = "bcdfghjklmnpqrstvwxz", "aeiouy", "bdfgklmnprstvxz"

        def word() -> str:
            syllables = range(int(draw.integers(2, 5)))
            return "".join(p[draw.integers(len(p))] for _ in syllables for p in parts) + " "

        return cut(word, draw, count)


class Easy:
    """One of a few frequent words, again and again: a loss is low, and there is little to learn."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def rows(self, draw: Generator, count: int) -> list[str]:
        """Return rows of one word each."""
        rows = []
        for _ in range(count):
            word = self.words[int(draw.integers(len(self.words)))] + " "
            start = int(draw.integers(len(word)))
            rows.append((word * LENGTH)[start : start + LENGTH])
        return rows


class Code:
    """Statements about given names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def rows(self, draw: Generator, count: int) -> list[str]:
        """Return rows of statements."""

        def statement() -> str:
            a, b = draw.choice(self.names, 2)
            return CODE[draw.integers(len(CODE))].format(a=a, b=b) + " "

        return cut(statement, draw, count)


class FileText:
    """Rows cut out of the texts of a file at random places, in the alphabet's characters.

    Args:
        path: a text in UTF-8.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"texts={str(path)!r} is not a file; METAOPT_DATA names the folder of data sets."
            )
        raw = Path(path).read_text(encoding="utf-8", errors="replace").lower()
        letters = "".join(c if c in ALPHABET else " " for c in raw)
        self.text = " ".join(letters.split())
        self.words = tuple(dict.fromkeys(w for w in self.text.split() if w.isalpha()))[:150]
        if len(self.text) < 100 * LENGTH or len(self.words) < 2:
            raise ValueError(
                f"texts={str(path)!r} has {len(self.text)} characters of {ALPHABET!r}; at least "
                f"{100 * LENGTH} are needed."
            )

    def rows(self, draw: Generator, count: int) -> list[str]:
        """Return rows."""
        starts = draw.integers(len(self.text) - LENGTH, size=count)
        return [self.text[s : s + LENGTH] for s in starts]


def cut(part: Callable[[], str], draw: Generator, count: int) -> list[str]:
    """Return rows cut out of a text of parts, each at one of its first eight characters."""
    rows = []
    for _ in range(count):
        text = ""
        while len(text) < LENGTH + 8:
            text += part()
        start = int(draw.integers(8))
        rows.append(text[start : start + LENGTH])
    return rows


def cipher(rows: Sequence[str], draw: Generator) -> list[str]:
    """Return rows with the letters exchanged by one permutation."""
    table = str.maketrans(LETTERS, "".join(LETTERS[k] for k in draw.permutation(26)))
    return [row.translate(table) for row in rows]


def noisy(rows: Sequence[str], level: float, draw: Generator) -> list[str]:
    """Return rows with that share of their characters replaced by random ones."""
    letters, result = np.array(list(ALPHABET)), []
    for row in rows:
        characters = np.array(list(row))
        hit = draw.random(len(row)) < level
        characters[hit] = draw.choice(letters, int(hit.sum()))
        result.append("".join(characters))
    return result


def encode(rows: Sequence[str]) -> Tensor:
    """Return the numbers of the characters, (n, LENGTH)."""
    numbers = {c: i for i, c in enumerate(ALPHABET)}
    return torch.tensor([[numbers[c] for c in row] for row in rows])
