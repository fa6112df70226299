"""Where preference pairs come from: the shared files, a path, the hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from metaopt.data.folder import data_sets, find_data
from metaopt.data.record_files import is_table
from metaopt.data.records import Record, records
from metaopt.problems.reward_model.data.generated_pairs import generated_pairs
from metaopt.problems.reward_model.data.pair import Malformed, Pair, Preferences
from metaopt.problems.reward_model.data.pair_rows import COLUMNS, read

SHARED = ("hh_harmless", "pandalm", "llmbar")
"""Data sets of `metaopt.data.folder.data_sets` that hold preferences."""

GENERATED = "generated"
MALFORMED = ("refuse", "report")


def preferences(
    source: str | Sequence[str] = "generated",
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    subset: str | None = None,
    folder: str | None = None,
    malformed: str = "refuse",
) -> Preferences:
    """Return the preference pairs of a source.

    HH-RLHF's dialogues come as plain text, PandaLM and LLMBar as conversations; `plain` makes all
    of them look alike. HH-RLHF's harmless test set has 4 malformed rows in 2,312 and PandaLM's has
    54 in 999, all because an answer is empty: read them with malformed="report".

    Args:
        source: generated (see `generated_pairs`), hh_harmless, pandalm or llmbar; a file, a
            folder or a data set id of the hub (owner/name), as `metaopt.data.records.records` reads
            them; or several of these.
        columns: {column of `COLUMNS`: its name in the source}, for those with another name.
        split: part of the hub's data set.
        subset: configuration of the hub's data set.
        folder: folder in the hub's data set, as harmless-base in Anthropic/hh-rlhf.
        malformed: refuse to go on, or leave malformed rows out and report them: in the result and
            as a warning of this module's logger, with their numbers and their count.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: malformed rows that are refused; a file that is damaged; no pair at all.
    """
    if malformed not in MALFORMED:
        raise ValueError(f"malformed must be one of {', '.join(MALFORMED)}; got {malformed!r}.")
    unknown = sorted(set(columns or ()) - set(COLUMNS))
    if unknown:
        raise ValueError(f"columns may rename {', '.join(COLUMNS)}; got {', '.join(unknown)}.")
    names = [source] if isinstance(source, str) else list(source)
    pairs: list[Pair] = []
    ties: list[Pair] = []
    wrong: list[Malformed] = []
    cast: list[tuple[str, int]] = []
    count = 0
    options = {"columns": columns, "split": split, "subset": subset, "folder": folder}
    for record in chain.from_iterable(_records(name, **options) for name in names):
        count += 1
        try:
            row = read(record.value, cells=is_table(record.file))
        except ValueError as reason:
            wrong.append(Malformed(record.file, record.number, str(reason)))
            continue
        for pair in row.pairs:
            pair = pair._replace(row=record.number, section=pair.section or record.part)
            (ties if row.tie else pairs).append(pair)
        if row.cast:
            cast.append((record.file, record.number))
    read_pairs = Preferences(
        tuple(pairs), tuple(ties), tuple(wrong), tuple(cast), ", ".join(names), count
    )
    if wrong and malformed == "refuse":
        raise ValueError(
            f"{read_pairs.report()}\nCorrect these rows, or pass malformed=report to leave them "
            f"out."
        )
    if not pairs:
        raise ValueError(f"there is no preference in {read_pairs.report()}")
    if wrong:
        logging.getLogger(__name__).warning("%s", read_pairs.report())
    return read_pairs


def transferred(tests: Mapping[str, Preferences | str] | None) -> dict[str, Preferences]:
    """Return further tests by name; a text is a source of `preferences`."""
    given = (tests or {}).items()
    return {name: preferences(x) if isinstance(x, str) else x for name, x in given}


def _records(name: str, **options: Any) -> Iterator[Record]:
    if name == GENERATED:
        for pair in generated_pairs():
            yield Record(pair._asdict(), pair.row, f"{name}:{pair.row}", name, name)
    elif name in SHARED:
        for path in data_sets()[name]["files"]:
            yield from records(find_data(path, name))
    else:
        try:
            yield from records(name, **options)
        except FileNotFoundError as error:
            known = ", ".join((GENERATED, *SHARED))
            raise FileNotFoundError(f"source={name}: {error} Known by name are {known}.") from error
