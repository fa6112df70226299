"""Training rows by domain, meta rows and held-out rows, of files or data sets."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.data.records import Record, grouped, records, rows_as_records

Rows = str | Path | Iterable[Mapping[str, Any]]
"""A source of `metaopt.data.records.records`, or rows in memory, such as a `datasets.Dataset`."""


class CurationRows(NamedTuple):
    """Rows of the two levels and of the test.

    Args:
        train: training rows.
        domain: of each training row.
        meta: rows of the meta-loss.
        held_out: rows that neither level reads; none for no metrics.
    """

    train: tuple[Record, ...]
    domain: tuple[str, ...]
    meta: tuple[Record, ...]
    held_out: tuple[Record, ...] = ()


def rows(
    train: Rows | Mapping[str, Rows],
    meta: Rows,
    held_out: Rows | None = None,
    domain: str | None = None,
    columns: Mapping[str, str] | None = None,
    subset: str | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
) -> CurationRows:
    """Return rows of files, folders, data sets of the hub, or data sets in memory.

    Example:
        >>> good, bad = ([{"prompt": "1 +", "completion": x}] * 2 for x in (" 1", " 2"))
        >>> rows({"good": good, "bad": bad}, meta=good).domain
        ('good', 'good', 'bad', 'bad')

    Args:
        train: one source, or {domain: source}.
        meta: rows to be trusted, of the same columns.
        held_out: rows that neither level reads, or `None`.
        domain: column with the domain of each training row; `None` for the sources' names, or the
            files' names of one source.
        columns: {column: its name in the sources}.
        subset, split: of data sets of the hub.
        limit: most training rows of each domain, drawn by `seed`; `None` for all.

    Raises:
        FileNotFoundError: a source is missing.
        ValueError: rows that are none, a row without the domain's column, sources that are empty.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be >= 1 or null; got {limit}.")

    def read(name: str, source: Rows) -> Iterator[Record]:
        if isinstance(source, (str, Path)):
            try:
                yield from records(source, columns, subset, split)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{name}={source}: {error}") from error
        else:
            yield from rows_as_records(source, name, columns)

    if isinstance(train, Mapping):
        if domain is not None:
            raise ValueError(
                f"domain={domain} names a column, and train={{{', '.join(train)}: ...}} names the "
                f"domains by their sources; leave one of them out."
            )
        named = [[(r, key) for r in read(key, source)] for key, source in train.items()]
        training = list(chain.from_iterable(named))
    else:
        training = [(r, r.part) for r in read("train", train)]
    parts = {
        "train": [r for r, _ in training],
        "meta": list(read("meta", meta)),
        "held_out": [] if held_out is None else list(read("held_out", held_out)),
    }
    wrong = [(r.place, str(r.value)) for part in parts.values() for r in part
             if isinstance(r.value, ValueError)]  # fmt: skip
    wrong += [(r.place, f"is {type(r.value).__name__}, not an object {{column: value}}")
              for part in parts.values() for r in part
              if not isinstance(r.value, (Mapping, ValueError))]  # fmt: skip
    if domain is not None and not wrong:
        wrong = [(r.place, f"has no domain in its column {domain!r}; it has {', '.join(r.value)}")
                 for r in parts["train"] if r.value.get(domain) in (None, "")]  # fmt: skip
        training = [(r, str(r.value.get(domain))) for r in parts["train"]]
    if wrong:
        raise ValueError(f"rows that cannot be read:{grouped(wrong)}")
    for name in ("train", "meta"):
        if not parts[name]:
            raise ValueError(f"{name} has no row.")
    if limit is not None:
        training = _limited(training, limit, seed)
    train_rows, domains = zip(*training, strict=True)
    return CurationRows(train_rows, domains, tuple(parts["meta"]), tuple(parts["held_out"]))


def _limited(training: list[tuple[Record, str]], limit: int, seed: int) -> list[tuple[Record, str]]:
    """Return at most `limit` rows of each domain, in their order."""
    order = list(range(len(training)))
    random.Random(seed).shuffle(order)
    counts: dict[str, int] = {}
    chosen = set()
    for i in order:
        name = training[i][1]
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= limit:
            chosen.add(i)
    return [training[i] for i in sorted(chosen)]
