"""The formats by name, and files, folders and data sets of the hub that are read in any of them."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.data.records import grouped, records
from metaopt.problems.process_reward.data.formats.chain import Chain, from_chain, to_chain
from metaopt.problems.process_reward.data.formats.columns import Renaming
from metaopt.problems.process_reward.data.formats.dreamprm import (
    Prefix,
    from_dreamprm15,
    from_dreamprm15_meta,
    from_dreamprm_meta,
    from_prefix,
    join_prefixes,
)
from metaopt.problems.process_reward.data.formats.math_shepherd import from_math_shepherd
from metaopt.problems.process_reward.data.formats.prm800k import from_prm800k
from metaopt.problems.process_reward.data.formats.step_lists import (
    from_bigbench_mistake,
    from_prm_bench,
    from_process_bench,
    from_solution,
    from_stepwise,
    to_stepwise,
)

SYNONYMS = (
    {"prompt", "question", "problem", "query", "input", "instruction"},
    {"steps", "completions", "solution", "response", "answer", "reasoning", "chain"},
    {"step_label", "label", "labels", "step_labels", "step_ok", "step_correct", "ratings",
     "scores", "correct", "values", "value", "rewards"},
    {"mistake_index", "first_error", "error_step", "error_index", "first_error_step",
     "mistake_step", "error_steps"},
)  # fmt: skip
"""Names that columns of one meaning have elsewhere; they rank formats in messages only."""


class Format(NamedTuple):
    """How a format is recognized and read.

    Args:
        columns: a row with these is of this format, unless an earlier one of `FORMATS` fits.
        parse: returns a row's chain, or its prefix of one.
        labels: whether its steps have labels.
        outcome: the column that says whether the final answer is right; "" for none.
        kinds: {column: type} that a row must have, where the names alone are those of other data.
    """

    columns: tuple[str, ...]
    parse: Callable[[Mapping[str, Any]], Chain | Prefix]
    labels: bool = True
    outcome: str = ""
    kinds: Mapping[str, type | tuple[type, ...]] = {}

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row is of this format, by its columns."""
        kinds = self.kinds.items()
        return row.keys() >= set(self.columns) and all(isinstance(row[c], k) for c, k in kinds)


FORMATS = {
    "chain": Format(("prompt", "steps", "step_label"), from_chain, outcome="outcome"),
    "dreamprm": Format(("input", "add"), from_prefix),
    "dreamprm15_meta": Format(
        ("conversations", "true_false"), from_dreamprm15_meta, False, "true_false"
    ),
    "dreamprm15": Format(("conversations",), from_dreamprm15),
    "dreamprm_meta": Format(("input", "true_false"), from_dreamprm_meta, False, "true_false"),
    "stepwise": Format(("prompt", "completions", "labels"), from_stepwise),
    "prm800k": Format(
        ("question", "label"),
        from_prm800k,
        outcome="label.finish_reason",
        kinds={"question": Mapping, "label": Mapping},
    ),
    "prm_bench": Format(("question", "modified_process", "error_steps"), from_prm_bench),
    "process_bench": Format(
        ("problem", "steps", "label"),
        from_process_bench,
        outcome="final_answer_correct",
        kinds={"label": (int, float, str, type(None))},
    ),
    "bigbench_mistake": Format(
        ("input", "steps", "mistake_index"), from_bigbench_mistake, outcome="answer and target"
    ),
    "math_shepherd": Format(("input", "label", "task"), from_math_shepherd),
    "solution": Format(("response",), from_solution, False, "outcome"),
}
"""The formats; "chain" is this project's own, and "stepwise" is TRL's."""


def read(
    source: str | Path,
    format: str | None = None,
    renaming: Renaming | None = None,
    strict: bool = True,
) -> tuple[Chain, ...]:
    """Return the chains of a file, a folder or a data set of the hub, in the order of their rows.

    A chain without a domain takes the name of its file.

    Args:
        source: see `metaopt.data.records.records`.
        format: name in `FORMATS`; `None` tells it by each row's columns.
        renaming: of columns that have other names in the source.
        strict: refuse a source with a malformed row; else warn with the count and go on.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: an unknown format; malformed rows, by reason and with their places; or no chain
            at all.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format={format!r} is none of {', '.join(FORMATS)}.")
    chains: list[Chain] = []
    prefixes: list[Prefix] = []
    wrong: list[tuple[str, str]] = []
    total = 0
    for record in records(source):
        total += 1
        try:
            parsed = _parse(renaming(record.value) if renaming else record.value, format)
        except ValueError as reason:
            names = renaming.said(record.value) if renaming else ""
            wrong.append((record.place, f"{reason}{names}"))
            continue
        if isinstance(parsed, Prefix):
            place, *rest = parsed.question
            prefixes.append(parsed._replace(question=(place or record.part, *rest)))
        else:
            domain = parsed.domain or record.part
            chains.append(replace(parsed, domain=domain, file=record.file, row=record.number))
    if wrong:
        counted = f"malformed rows of {source}, {len(wrong)} of {total}"
        if strict:
            raise ValueError(
                f"{counted}:{grouped(wrong)}\ncolumns={{...}} renames columns, strict=false leaves "
                f"such rows out (metaopt-label: --columns COLUMN=NAME, --lenient)."
            )
        warnings.warn(f"{counted}, left out:{grouped(wrong)}", stacklevel=2)
    # A chain's prefixes may be anywhere in the source: they are joined once all are read.
    chains += join_prefixes(prefixes)
    if not chains:
        raise ValueError(f"{source} holds no chain.")
    return tuple(chains)


def _parse(row: Any, format: str | None) -> Chain | Prefix:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError("is not an object; a row is {column: value}")
    if format is None:
        format = next((name for name, form in FORMATS.items() if form.fits(row)), None)
    if format is None:
        columns = ", ".join(map(str, row)) or "none"
        raise ValueError(
            f"its columns are those of no format: {columns:.200}. Nearest: {_nearest(row)}"
        )
    return FORMATS[format].parse(row)


def _nearest(row: Mapping[str, Any]) -> str:
    """Return the three formats that share the most columns with a row, and how to read it so."""

    def names(form: Format) -> dict[str, str]:
        """Return {column of the format: the same, or a synonym, among the row's columns}."""

        def legal(column: str, name: str) -> bool:
            return isinstance(row[name], form.kinds.get(column, object))

        same = {
            column: column for column in form.columns if column in row and legal(column, column)
        }
        for column in form.columns:
            alike = next((group for group in SYNONYMS if column in group), set())
            free = [x for x in row if x in alike and x not in same.values() and legal(column, x)]
            if column not in same and free:
                same[column] = free[0]
        return same

    def rank(form: Format) -> tuple[int, int, int]:
        shared = names(form)
        exact = sum(column == name for column, name in shared.items())
        return -len(shared), -exact, len(form.columns)

    def shown(name: str) -> str:
        form = FORMATS[name]
        shared = names(form)
        lacking = ", ".join(column for column in form.columns if column not in shared)
        others = ", ".join(f"{c}: {x}" for c, x in shared.items() if c != x)
        return (
            f"{name} ({', '.join(form.columns)})"
            + (f", which lacks {lacking}" if lacking else "")
            + (f", by columns={{{others}}}" if others and not lacking else "")
        )

    return "; ".join(map(shown, sorted(FORMATS, key=lambda name: rank(FORMATS[name]))[:3]))


def check_file(path: Path) -> str:
    """Return the name of a file to write, without .gz.

    Raises:
        ValueError: `write` makes no file of this kind.
    """
    name = path.name.removesuffix(".gz")
    if not name.endswith((".json", ".jsonl")):
        raise ValueError(f"path={path} must end in .json, .jsonl, .json.gz or .jsonl.gz.")
    return name


def write(path: str | Path, chains: Sequence[Chain], format: str = "chain") -> None:
    """Write chains to a file: one array for .json, one row per line for .jsonl; either with .gz.

    Args:
        path: of the file.
        chains: to write.
        format: chain, which holds everything, or stepwise, which TRL reads.

    Raises:
        ValueError: another kind of file, another format, or chains that it cannot express.
    """
    path = Path(path)
    name = check_file(path)
    if format not in ("chain", "stepwise"):
        raise ValueError(f"format must be chain or stepwise; got {format!r}.")
    rows = to_stepwise(chains) if format == "stepwise" else [to_chain(chain) for chain in chains]
    if name.endswith(".json"):
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = text.encode()
    # No time stamp: the same chains give the same file.
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
