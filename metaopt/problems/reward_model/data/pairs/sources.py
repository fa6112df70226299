"""Where preference pairs come from: the shared files, a path, the hub."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metaopt.problems.reward_model.data.pairs.pairs import Malformed, Pair, Preferences
from metaopt.problems.reward_model.data.pairs.rows import Columns, read

SHARED = {
    "hh_harmless": ("hh_harmless_base_test.jsonl.gz",),
    "pandalm": ("pandalm_testset_v1.json",),
    "llmbar": tuple(
        f"llmbar_{part}.json" for part in ("natural", "neighbor", "gptinst", "gptout", "manual")
    ),
}
"""Names of known data sets, and their files in $METAOPT_DATA/preferences."""

ORIGINS = {
    "hh_harmless": "https://github.com/anthropics/hh-rlhf (harmless-base/test.jsonl.gz)",
    "pandalm": "https://github.com/WeOpenML/PandaLM (data/testset-v1.json)",
    "llmbar": "https://github.com/princeton-nlp/LLMBar (Dataset/LLMBar/*/dataset.json)",
}
ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
MALFORMED = ("refuse", "report")
Rows = Iterator[tuple[int, Any]]


def preferences(
    source: str | Sequence[str] = "hh_harmless",
    columns: Columns | None = None,
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
        source: hh_harmless, pandalm or llmbar; a path that ends in .json, .jsonl, either with .gz,
            or .parquet; an id of the hub (owner/name); or several of these.
        columns: names of the columns, or `None` for TRL's.
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
    names = [source] if isinstance(source, str) else list(source)
    pairs: list[Pair] = []
    ties: list[Pair] = []
    wrong: list[Malformed] = []
    cast: list[tuple[str, int]] = []
    for name in names:
        for origin, section, rows in _parts(name, split, subset, folder):
            for number, row in rows:
                try:
                    if isinstance(row, ValueError):
                        raise row
                    found = read(row, columns or Columns())
                except ValueError as reason:
                    wrong.append(Malformed(origin, number, str(reason)))
                    continue
                pair = found.pair._replace(row=number, section=found.pair.section or section)
                (ties if found.tie else pairs).append(pair)
                if found.cast:
                    cast.append((origin, number))
    told = Preferences(tuple(pairs), tuple(ties), tuple(wrong), tuple(cast), ", ".join(names))
    if wrong and malformed == "refuse":
        raise ValueError(
            f"{told.report()}\nCorrect these rows, or pass malformed=report to leave them out."
        )
    if not pairs:
        raise ValueError(f"there is no preference in {told.report()}")
    if wrong:
        logging.getLogger(__name__).warning("%s", told.report())
    return told


def _parts(
    name: str, split: str, subset: str | None, folder: str | None
) -> Iterator[tuple[str, str, Rows]]:
    """Yield (origin, section, rows) of each file of a source."""
    if name in SHARED:
        root = Path(os.environ.get("METAOPT_DATA", "../shared/data")) / "preferences"
        for file in SHARED[name]:
            path = root / file
            if not path.is_file():
                raise FileNotFoundError(
                    f"{name} is not in {path}. Get it from {ORIGINS[name]}, save it under that "
                    f"name and set METAOPT_DATA to the folder above preferences/; or give a path "
                    f"or a data set of the hub."
                )
            yield file, path.name.split(".")[0], _file(path)
        return
    path = Path(name).expanduser()
    if path.is_file():
        if not path.name.endswith(ENDINGS):
            raise ValueError(f"preferences are read from {', '.join(ENDINGS)}; got {path}.")
        yield path.name, path.name.split(".")[0], _file(path)
        return
    if name.count("/") != 1 or name[0] in "./~" or name.endswith(ENDINGS):
        raise FileNotFoundError(
            f"preferences {name!r} are neither {', '.join(SHARED)}, nor a file, nor a data set of "
            f"the hub (owner/name)."
        )
    yield (
        f"{name} ({split})",
        subset or folder or name.split("/")[1],
        _hub(name, split, subset, folder),
    )


def _file(path: Path) -> Rows:
    """Yield (number, row), where a row that is no JSON is an error."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            yield from enumerate(parquet.read_table(path).to_pylist(), 1)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is no parquet file: {error}") from error
        return
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (EOFError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}.") from None
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
            return
        except json.JSONDecodeError as error:
            if ".jsonl" not in path.name:
                raise ValueError(f"{path} is no JSON: {error}.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, ValueError(f"is no JSON: {error}")


def _hub(name: str, split: str, subset: str | None, folder: str | None) -> Rows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(name, subset, data_dir=folder, split=split)
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"the hub's data set {name} cannot be read ({type(error).__name__}). Check the name "
            f"and the network, or give a file."
        ) from error
    yield from enumerate(rows, 1)
