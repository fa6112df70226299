"""The formats by name, and reading and writing any of them."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.problems.process_reward.data.formats.chain import Chain, from_chain, to_chain
from metaopt.problems.process_reward.data.formats.dreamprm import (
    Prefix,
    from_dreamprm,
    prefix,
    to_dreamprm,
)
from metaopt.problems.process_reward.data.formats.dreamprm15 import (
    from_dreamprm15,
    from_dreamprm15_meta,
    to_dreamprm15,
    to_dreamprm15_meta,
)
from metaopt.problems.process_reward.data.formats.dreamprm_meta import (
    from_dreamprm_meta,
    to_dreamprm_meta,
)
from metaopt.problems.process_reward.data.formats.first_error import (
    from_bigbench_mistake,
    from_process_bench,
    to_bigbench_mistake,
    to_process_bench,
)
from metaopt.problems.process_reward.data.formats.math_shepherd import (
    from_math_shepherd,
    to_math_shepherd,
)
from metaopt.problems.process_reward.data.formats.prm800k import from_prm800k, to_prm800k
from metaopt.problems.process_reward.data.formats.refusals import listing
from metaopt.problems.process_reward.data.formats.sources import parts
from metaopt.problems.process_reward.data.formats.stepwise import from_stepwise, to_stepwise


class Format(NamedTuple):
    """How a format is told, read and written.

    Args:
        columns: a row with these is of this format, unless an earlier one of `FORMATS` fits.
        parse: a row's chain, or its prefix of one.
        write: rows of chains.
    """

    columns: frozenset[str]
    parse: Callable[[Mapping[str, Any]], Chain | Prefix]
    write: Callable[[Sequence[Chain]], list[dict[str, Any]]]


FORMATS = {
    "chain": Format(frozenset({"prompt", "steps", "step_label"}), from_chain, to_chain),
    "dreamprm": Format(frozenset({"input", "add"}), prefix, to_dreamprm),
    "dreamprm15_meta": Format(
        frozenset({"conversations", "true_false"}), from_dreamprm15_meta, to_dreamprm15_meta
    ),
    "dreamprm15": Format(frozenset({"conversations"}), from_dreamprm15, to_dreamprm15),
    "dreamprm_meta": Format(
        frozenset({"input", "true_false"}), from_dreamprm_meta, to_dreamprm_meta
    ),
    "stepwise": Format(frozenset({"prompt", "completions", "labels"}), from_stepwise, to_stepwise),
    "prm800k": Format(frozenset({"question", "label"}), from_prm800k, to_prm800k),
    "process_bench": Format(
        frozenset({"problem", "steps", "label"}), from_process_bench, to_process_bench
    ),
    "bigbench_mistake": Format(
        frozenset({"input", "steps", "mistake_index"}), from_bigbench_mistake, to_bigbench_mistake
    ),
    "math_shepherd": Format(
        frozenset({"input", "label", "task"}), from_math_shepherd, to_math_shepherd
    ),
}
"""The formats; "chain" is this project's own, and "stepwise" is TRL's."""


@dataclass(frozen=True)
class Chains:
    """Chains that were read, and what was not.

    Args:
        chains: in the order of their rows.
        malformed: the rows that are no chain, each with file and line and what is wrong.
        source: where they come from.
    """

    chains: tuple[Chain, ...]
    malformed: tuple[str, ...] = ()
    source: str = ""


def read(
    source: str | Path,
    format: str | None = None,
    domain: str | None = None,
    subset: str | None = None,
    split: str = "train",
    strict: bool = True,
) -> Chains:
    """Return the chains of a file, a folder or a data set of the hub.

    Args:
        source: a file (.json with one array or one row a line, .jsonl, either with .gz, .parquet),
            a folder of them, or a data set id of the hub (owner/name).
        format: name in `FORMATS`; `None` tells it by each row's columns.
        domain: of every chain; `None` is what the row says, or else the name of its file.
        subset: of the hub's data set; `None` is its default one.
        split: of the hub's data set.
        strict: refuse a source with a malformed row; else warn with the count and go on.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: an unknown format; malformed rows, listed with file and line (the first 100 of
            them, and the count); or no chain at all.
    """
    if format is not None:
        _known(format)
    found: list[Chain] = []
    prefixes: list[Prefix] = []
    wrong: list[str] = []
    total = 0
    for stem, rows in parts(source, subset, split):
        for where, row in rows:
            total += 1
            try:
                one = _parse(row, format)
            except ValueError as reason:
                wrong.append(f"{where}: {reason}")
                continue
            if isinstance(one, Prefix):
                place, asked = one.question[0] or stem, one.question[1:]
                prefixes.append(one._replace(question=(place, *asked)))
            else:
                found.append(one if one.domain else replace(one, domain=stem))
    if wrong:
        counted = f"malformed rows of {source}, {len(wrong)} of {total}"
        if strict:
            raise ValueError(f"{counted}:{listing(wrong)}\nstrict=False leaves them out.")
        warnings.warn(f"{counted}, left out:{listing(wrong)}", stacklevel=2)
    found += from_dreamprm(prefixes)
    if not found:
        raise ValueError(f"{source} holds no chain.")
    if domain is not None:
        found = [replace(chain, domain=domain) for chain in found]
    return Chains(tuple(found), tuple(wrong), str(source))


def _known(format: str) -> Format:
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is none of {', '.join(FORMATS)}.")
    return FORMATS[format]


def _parse(row: Any, format: str | None) -> Chain | Prefix:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError("is no object; a row is {column: value}")
    if format is None:
        format = next((name for name, form in FORMATS.items() if form.columns <= row.keys()), None)
    if format is None:
        columns = ", ".join(map(str, row)) or "none"
        raise ValueError(f"its columns are those of no format: {columns:.200}")
    return FORMATS[format].parse(row)


def rows_of(chains: Sequence[Chain], format: str) -> list[dict[str, Any]]:
    """Return the rows of chains in a format.

    Rows that were read from the format come back as they were. Another one may have no place for
    what a chain holds: labels or outcomes that it needs and cannot express are refused; fields
    that it lacks (policy, counts, ...) and white space around steps are left out.

    Raises:
        ValueError: an unknown format, or chains that it cannot express, listed with the count.
    """
    return _known(format).write(chains)


def write(path: str | Path, chains: Sequence[Chain], format: str = "chain") -> None:
    """Write chains to a file: one array for .json, one row a line for .jsonl; either with .gz.

    Raises:
        ValueError: another kind of file, an unknown format, or chains that it cannot express.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz")
    if not name.endswith((".json", ".jsonl")):
        raise ValueError(f"path={path} must end in .json, .jsonl, .json.gz or .jsonl.gz.")
    rows = rows_of(chains, format)
    if name.endswith(".json"):
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
