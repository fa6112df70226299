"""Rows of text of known worth: noise of several levels, and rows that a loss misjudges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaopt.engine.random import fold
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.problems.data_curation.languages import (
    Code,
    Easy,
    FileText,
    Hard,
    Ordinary,
    cipher,
    noisy,
)

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of random characters in training rows, a domain each."""

UNSEEN_LEVELS = (0.0, 0.05, 0.15, 0.3, 0.55, 0.85)
"""Shares of random characters in rows that nothing is trained on."""

REPEATED = 11
"""Different rows of the domain `repeated`."""


class TextWorld(NamedTuple):
    """Rows for the two levels and for what is measured, all drawn independently of each other.

    Args:
        texts: n training rows.
        domain: of each, (n,).
        domains: names.
        level: share of random characters of each, (n,); NaN but for noisy copies of ordinary text.
        meta: meta rows.
        meta_kinds: the language, or domain, of each.
        test: rows of ordinary and hard text in equal shares.
        unseen: ordinary rows with noise of `UNSEEN_LEVELS`.
        unseen_level: of each.
    """

    texts: Sequence[str]
    domain: Tensor
    domains: tuple[str, ...]
    level: Tensor
    meta: Sequence[str]
    meta_kinds: Tensor
    test: Sequence[str]
    unseen: Sequence[str]
    unseen_level: Tensor


def text_world(
    rows: int = 400,
    easy_rows: int = 1600,
    meta: Literal["clean", "mixture"] = "clean",
    meta_size: int = 500,
    test_size: int = 400,
    unseen_size: int = 600,
    texts: str | Path | None = None,
    seed: int = 0,
) -> TextWorld:
    """Return a world of eleven domains.

    `noise_0` to `noise_100` are ordinary text with so many percent of random characters, `cipher`
    is ordinary text with exchanged letters, `code` statements, `repeated` few ordinary rows over
    and over, `easy` one word again and again, and `hard` a second language that the test asks for,
    too. Under a model of clean text easy rows have the least loss and teach nothing; hard rows have
    a higher one than noisy rows, and teach half of what the test asks for.

    Args:
        rows: training rows of each domain but `easy`, >= 1.
        easy_rows: of `easy`, >= 1.
        meta: clean rows of ordinary and hard text, or new rows of the training mixture.
        meta_size, test_size, unseen_size: numbers of rows, >= 2 each; of the last >= 6.
        texts: a file that ordinary text is cut out of, or `None` for made-up words.
        seed: of all rows; languages included.

    Raises:
        ValueError: an argument out of range.
        FileNotFoundError: there is no such file of texts.
    """
    options = SimpleNamespace(**{**locals()})
    check_choices(options, meta=("clean", "mixture"))
    check_ranges(
        options, "rows >= 1", "easy_rows >= 1", "meta_size >= 2", "test_size >= 2",
        "unseen_size >= 6",
    )  # fmt: skip
    draw = np.random.default_rng(fold(seed, "text world"))
    ordinary = Ordinary(draw) if texts is None else FileText(texts)
    hard = Hard()
    key = int(draw.integers(2**31))

    def mixture(count: int, easy: int) -> dict[str, list[str]]:
        parts = {
            f"noise_{round(100 * level)}": noisy(ordinary.rows(draw, count), level, draw)
            for level in LEVELS
        }
        parts["cipher"] = cipher(ordinary.rows(draw, count), np.random.default_rng(key))
        parts["code"] = Code(ordinary.words[:80]).rows(draw, count)
        few = ordinary.rows(draw, REPEATED)
        parts["repeated"] = [few[i % REPEATED] for i in range(count)]
        parts["easy"] = Easy(ordinary.words[:5]).rows(draw, easy)
        parts["hard"] = hard.rows(draw, count)
        return parts

    def clean(size: int) -> tuple[list[str], Tensor]:
        half = size // 2
        both = ordinary.rows(draw, size - half) + hard.rows(draw, half)
        return both, torch.tensor([0] * (size - half) + [1] * half)

    training = mixture(rows, easy_rows)
    domain = _numbered(training)
    level = torch.full((len(domain),), torch.nan)
    for k, share in enumerate(LEVELS):
        level[domain == k] = share
    if meta == "clean":
        meta_rows, kinds = clean(meta_size)
    else:
        new = mixture(rows, easy_rows)
        chosen = draw.choice(len(domain), meta_size, replace=meta_size > len(domain))
        every = [row for part in new.values() for row in part]
        meta_rows, kinds = [every[k] for k in chosen], domain[torch.from_numpy(chosen)]
        kinds = kinds.unique(return_inverse=True)[1]
    test, _ = clean(test_size)
    each = unseen_size // len(UNSEEN_LEVELS)
    unseen = [noisy(ordinary.rows(draw, each), share, draw) for share in UNSEEN_LEVELS]
    return TextWorld(
        [row for part in training.values() for row in part], domain, tuple(training), level,
        meta_rows, kinds, test, [row for part in unseen for row in part],
        torch.tensor(UNSEEN_LEVELS).repeat_interleave(each),
    )  # fmt: skip


def _numbered(parts: dict[str, list[str]]) -> Tensor:
    return torch.arange(len(parts)).repeat_interleave(torch.tensor([*map(len, parts.values())]))
