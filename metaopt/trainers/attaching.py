"""Weights of a run, joined to a data set by the content of its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from metaopt.data.record_files import is_table
from metaopt.data.weights_file import ExampleWeights, content_hash, read_example_weights

if TYPE_CHECKING:
    from datasets import Dataset

WEIGHT = "weight"
"""The column that `attach` adds and weighted trainers read."""

Missing = Literal["error", "drop"]


def attach(
    dataset: Dataset,
    file: str | Path,
    columns: Sequence[str] | Mapping[str, str] | None = None,
    missing: Missing = "error",
    drop_zero: bool = True,
) -> Dataset:
    """Return the data set with the column `weight`: what a run says that each row counts.

    A row is found by the hash of its content, never by its place: the data may be shuffled,
    filtered or duplicated, and have further columns. Attach weights to rows as the run read them,
    before a template or a tokenizer changes them. Rows of equal content share the mean of their
    weights.

    The weights are those of the file, whose mean is 1. Without the rows of weight 0 an epoch has
    fewer steps and the same sum of gradients.

    Args:
        dataset: `datasets.Dataset`; of a `DatasetDict` one split.
        file: weights.parquet of a run's folder.
        columns: those that the hashes are over, `None` for what the file says; or {column of the
            file: its name in the data set}.
        missing: error; or drop rows that have no weight.
        drop_zero: leave out rows of weight 0, which would cost a forward pass for nothing.

    Raises:
        ValueError: columns that differ, rows without a weight, with their number and the first of
            them, or no row that is left.

    Example:
        >>> rows = load_dataset("json", data_files="rows.jsonl", split="train")
        >>> rows = attach(rows, "runs/curation/weights.parquet")
        >>> WeightedSFTTrainer(model, args, train_dataset=rows).train()
    """
    _check(dataset, missing)
    content = read_example_weights(file)
    names = _names(dataset, content, columns, file)
    known = _by_hash(content)
    rows = dataset.with_format(None).select_columns(list(names.values()))
    digests = [_digest({k: row[v] for k, v in names.items()}) for row in rows]
    weights = [known.get(digest) for digest in digests]
    lacking = [i for i, weight in enumerate(weights) if weight is None]
    if lacking and missing == "error":
        matched = len(set(digests) & known.keys())
        shown = str({name: rows[lacking[0]][name] for name in names.values()})
        absent = [name for name in content.columns if name not in names]
        advice = (
            f"The data set has no column {', '.join(absent)}, which the hashes are over, too."
            if absent
            else "Values of csv are texts to a run, also NA and 1.50, and datasets parses them: "
            "take Dataset.from_list(list(csv.DictReader(open(FILE, newline='')))) instead."
            if any(is_table(example.file) for example in content.examples)
            else "Weights are attached to rows as the run read them: before a template, a strip or "
            "an added token changes their text."
            if len(lacking) == len(weights)
            else "missing='drop' leaves out rows that the run has not read."
        )
        raise ValueError(
            f"{len(lacking)} of {len(weights)} rows have no weight in {file}, which has "
            f"{len(known)} different ones and {matched} of them here, by the content of "
            f"{', '.join(names)}. The first is row {lacking[0]}: {shown:.200}. {advice}"
        )
    kept = [i for i, w in enumerate(weights) if w is not None and (w > 0 or not drop_zero)]
    if not kept:
        raise ValueError(f"no row of the data set has a weight above 0 in {file}.")
    return dataset.select(kept).add_column(WEIGHT, [weights[i] for i in kept])


def _digest(values: Mapping[str, Any]) -> bytes:
    """Return the hash of a row's columns, b"" where all of them are empty: no run reads that."""
    filled = any(value is not None for value in values.values())
    return content_hash(values, values) if filled else b""


def _check(dataset: Any, missing: str) -> None:
    import datasets

    if missing not in get_args(Missing):
        raise ValueError(f"missing must be one of {', '.join(get_args(Missing))}; got {missing!r}.")
    if isinstance(dataset, datasets.DatasetDict):
        raise ValueError(
            f"weights are attached to one split of a data set; give one of {', '.join(dataset)}."
        )
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"weights are attached to a datasets.Dataset, whose rows can be counted; got "
            f"{type(dataset).__name__}."
        )
    if WEIGHT in dataset.column_names:
        raise ValueError(f"the data set has a column {WEIGHT!r} already; remove or rename it.")


def _names(
    dataset: Dataset, content: ExampleWeights, columns: Any, file: str | Path
) -> dict[str, str]:
    """Return {column of the file: column of the data set}."""
    wanted = content.columns if columns is None else columns
    names = dict(wanted) if isinstance(wanted, Mapping) else {name: name for name in wanted}
    if set(names) != set(content.columns):
        raise ValueError(
            f"the hashes of {file} are over {', '.join(content.columns)}; got columns "
            f"{', '.join(names) or 'none'}. {{column of the file: column of the data}} renames."
        )
    held = {name for name in names.values() if name in dataset.column_names}
    # A column that no row has a value in may be absent: hashes leave such values out.
    if not held:
        raise ValueError(
            f"the hashes of {file} are over {', '.join(names.values())}, and the data set has "
            f"{', '.join(dataset.column_names)}. columns={{column of the file: column of the data}}"
            " renames."
        )
    return {k: v for k, v in names.items() if v in held}


def _by_hash(content: ExampleWeights) -> dict[bytes, float]:
    weights = defaultdict(list)
    for example, weight in zip(content.examples, content.weight.tolist(), strict=True):
        weights[example.hash].append(weight)
    return {digest: sum(values) / len(values) for digest, values in weights.items()}
