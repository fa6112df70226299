"""`metaopt score RUN FILE`: what a finished run has learned, applied to rows or to documents."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from metaopt.cli import reranking
from metaopt.files.errors import FolderError

if TYPE_CHECKING:
    from torch import Tensor

    from metaopt.data.records import Record

DESCRIPTION = """
Score the rows of a file by what a run has learned, and write them with two more
columns: `score`, and `score_cdf`, the share of the run's training examples
whose score is not larger. A rater's score has no scale; that of a rubric is in
points, and its examples are those that it was measured on. With --top 0.25 only
the quarter of the rows with the largest scores is written, in their order.

  metaopt score runs/a_rater rows.jsonl
  metaopt score runs/a_rater rows.parquet --columns text=body --top 0.25
  metaopt score runs/a_rubric answers.jsonl --limits lm_calls=500
  metaopt score runs/a_rubric answers.jsonl --llm openai_compatible model=NAME
  metaopt score runs/a_ranker beir --query TEXT --relevant d3 d8 --irrelevant d1

FILE is JSON lines, JSON, csv, tsv, parquet, or a text with a row on each line.
A rater counts how often a text is in the file, as it did among the training
examples. A rubric reads the column `response`, and `prompt` where a language
model follows it: the one of --llm, as llm=NAME llm.KEY=VALUE of a run, or else
the one that judged in the run, unless it is on another machine or no class of
metaopt. Its answers are kept next to the file that is written, so that the same
command asks for none twice. A row that it states no score of has none.

A run of problem=few_shot_ranking on texts re-ranks the documents of a folder
with corpus.jsonl (_id and text, also title) in it for a query: the first of
BM25, by a scorer that is fine-tuned on the marked ones. --marks takes
several queries, of queries.jsonl, with a score above 0 for a relevant document.
Written is ranked.jsonl in the folder: query, rank, _id, score, rank by BM25.
"""

ADDED = ("score", "score_cdf")


class Scorer(Protocol):
    """What scores the rows of a file.

    Attributes:
        columns: whose texts it reads.
        examples: what the CDF is among.
    """

    columns: Sequence[str]
    examples: str

    def __call__(self, rows: Sequence[Sequence[str]], out: Path) -> tuple[Tensor, Tensor]:
        """Return the score of each row, (n,), and its CDF among the examples; NaN of none.

        Args:
            rows: the text of each column.
            out: the file that is written; what was paid for is kept next to it.
        """
        ...


class _Rater:
    examples = "training examples"

    def __init__(self, path: Path) -> None:
        from metaopt.problems.domain_reweighting.rating import SavedRater

        self._rater = SavedRater(path)
        self.columns: Sequence[str] = self._rater.columns

    def __call__(self, rows: Sequence[Sequence[str]], out: Path) -> tuple[Tensor, Tensor]:
        return self._rater(["\n".join(texts) for texts in rows])


def _rater(path: Path, options: argparse.Namespace) -> Scorer:
    if options.llm or options.limits:
        raise ValueError("--llm and --limits are of a rubric; the rater of this run asks no model.")
    return _Rater(path)


def _rubric(path: Path, options: argparse.Namespace) -> Scorer:
    from functools import partial

    from metaopt.cli.judges import named_judge, own_judge
    from metaopt.cli.labelling import limits_of
    from metaopt.llm import Client
    from metaopt.problems.meta_policy_optimization.saved_rubric import RubricScorer, load_rubric

    lm = named_judge(options.llm) if options.llm else own_judge(path.parent)
    client = partial(Client, limits=limits_of(options.limits))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rubric = load_rubric(path, lm, client)
    for warning in said:
        print(f"metaopt-score: {warning.message}", file=sys.stderr)
    return RubricScorer(rubric)


SCORERS: Mapping[str, Callable[[Path, argparse.Namespace], Scorer]] = {
    "rater.safetensors": _rater,
    "rubric.json": _rubric,
}
"""By the file that a run writes where it has learned one, what reads it."""


class Rows(NamedTuple):
    """The rows of a file, and how some of them are written.

    Args:
        texts: of each row, one for each column.
        write: from the path, the rows to write in order, and the added columns, of all rows.
        ending: of the file that is written.
    """

    texts: Sequence[Sequence[str]]
    write: Callable[[Path, Sequence[int], Mapping[str, Sequence[float | None]]], None]
    ending: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Raises:
        FolderError: the run has learned nothing that scores rows.
        ValueError: the file lacks a column, holds rows that cannot be read, or would be replaced.
    """
    options = _parser().parse_args(arguments)
    ranker = reranking.ranker_of(options.run)
    if ranker is not None:
        return reranking.rerank(ranker, options)
    if strange := reranking.given(options):
        raise ValueError(
            f"{strange[0]} is of re-ranking, and {options.run} has no ranker; give the folder of a "
            f"run of problem=few_shot_ranking on texts."
        )
    if options.top is not None and not 0 < options.top <= 1:
        raise ValueError(f"--top must be a share in (0, 1]; got {options.top:g}.")
    scorer = scorer_of(options.run, options)
    rows = read(options.file, scorer.columns, options.columns)
    kind = "scored" if options.top is None else "top"
    out: Path = options.out or options.file.with_name(f"{_stem(options.file)}.{kind}{rows.ending}")
    if not out.name.lower().endswith(rows.ending):
        raise ValueError(f"--out must end in {rows.ending}, as {options.file} does; got {out}.")
    if out.exists():
        raise ValueError(f"{out} exists. Delete it, or name another file with --out.")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} to.")
    scores, cdf = scorer(rows.texts, out)
    scored = scores.isfinite().nonzero().flatten()
    chosen: Sequence[int] = range(len(scores))
    if options.top is not None:
        from metaopt.problems.domain_reweighting.rating import top

        chosen = scored[top(scores[scored], options.top)].tolist()
    added = {
        name: [None if math.isnan(value) else value for value in column.tolist()]
        for name, column in (("score", scores), ("score_cdf", cdf))
    }
    rows.write(out, chosen, added)
    print(_summary(len(scores), len(scored), cdf[scored].tolist(), scorer.examples))
    print(f"{len(chosen)} row{'s' if len(chosen) != 1 else ''} written to {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "metaopt-score",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, help="the folder of a finished run")
    add("file", type=Path, help="rows to score, or a folder of documents to rank")
    add("--columns", nargs="+", metavar="COLUMN=NAME", default=[], help="names in the file")
    add("--top", type=float, metavar="SHARE", help="write only the share with the largest scores")
    add("--llm", nargs="+", metavar=("NAME", "KEY=VALUE"), help="the judge of a rubric")
    add(
        "--limits",
        nargs="+",
        metavar="UNIT=AMOUNT",
        default=[],
        help="most lm_calls, lm_requests, tokens",
    )
    add("--out", type=Path, metavar="PATH", help="FILE.scored or FILE.top, with its ending")
    reranking.add_options(parser)
    return parser


def _summary(count: int, scored: int, cdf: Sequence[float], examples: str) -> str:
    words = f"{count} rows"
    if all(map(math.isfinite, cdf)):
        above = sum(value > 0.5 for value in cdf)
        words += f", {above} of them above the median of the {examples}"
    if scored < count:
        words += f"; {count - scored} have no score: a request failed, or its reply states none"
    return words


def scorer_of(run: Path, options: argparse.Namespace) -> Scorer:
    """Return what scores rows by a run.

    Args:
        run: its folder.
        options: of the command; llm and limits say who judges by a rubric.

    Raises:
        FolderError: the folder holds none.
    """
    if not run.is_dir():
        raise FolderError(f"there is no folder {run}. Give the folder of a finished run.")
    for name, make in SCORERS.items():
        if (run / name).is_file():
            return make(run / name, options)
    raise FolderError(
        f"{run} has nothing that scores rows: it needs one of {', '.join(SCORERS)}. A run with "
        f"weights@problem.weights=rater or of problem=meta_policy_optimization writes it when it "
        f"ends, unless figures=false."
    )


def read(file: Path, columns: Sequence[str], renamed: Sequence[str]) -> Rows:
    """Return the rows of a file.

    Args:
        file: to read.
        columns: whose texts are scored.
        renamed: words COLUMN=NAME.
    """
    from metaopt.data.records import column_names

    names = column_names(renamed)
    strange = [name for name in names if name not in columns]
    if strange:
        raise ValueError(f"--columns knows {', '.join(columns)}; got {strange[0]}.")
    names = {name: names.get(name, name) for name in columns}
    if not file.is_file():
        raise ValueError(f"there is no file {file}.")
    if file.suffix.lower() == ".txt":
        return _lines(file, columns)
    from metaopt.data.records import grouped, records

    every = list(records(file))
    values = [record.value for record in every]
    texts, mistakes = [], []
    for record in every:
        try:
            texts.append(_texts(record, names))
        except ValueError as error:
            mistakes.append((record.place, str(error)))
    if mistakes:
        keys = " ".join(f"{name}=NAME" for name in columns)
        raise ValueError(
            f"{len(mistakes)} of {len(every)} rows cannot be scored:{grouped(mistakes)}\n"
            f"Correct {file}, or say with --columns {keys} what its columns are called."
        )
    twice = [name for name in ADDED if any(name in value for value in values)]
    if twice:
        raise ValueError(f"{file} has a column {twice[0]!r} already. Rename it.")
    if file.suffix.lower() == ".parquet":
        return Rows(texts, lambda *args: _write_parquet(file, *args), ".parquet")
    for ending, mark in ((".csv", ","), (".tsv", "\t")):
        if ending in file.suffixes[-2:]:
            return Rows(texts, lambda *args, m=mark: _write_csv(values, m, *args), ending)
    return Rows(texts, lambda *args: _write_lines(values, *args), ".jsonl")


def _texts(record: Record, names: Mapping[str, str]) -> list[str]:
    from metaopt.data.row_texts import joined

    if isinstance(record.value, ValueError):
        raise record.value
    if not isinstance(record.value, Mapping):
        raise ValueError(f"must be an object; got {str(record.value)[:60]}")
    return [joined(record.value, (name,)) for name in names.values()]


def _lines(file: Path, columns: Sequence[str]) -> Rows:
    if len(columns) != 1:
        raise ValueError(
            f"{file} has one text on each line, and this run reads {', '.join(columns)}. Give a "
            f"file of JSON lines with these columns."
        )
    try:
        # Not by splitlines, which ends a line at characters such as U+2028, too.
        every = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}. Save it as UTF-8.") from None
    texts = [line for line in every if line.strip()]
    if not texts:
        raise ValueError(f"{file} holds no text.")
    values = [{columns[0]: text} for text in texts]
    return Rows([[text] for text in texts], lambda *args: _write_lines(values, *args), ".jsonl")


def _stem(file: Path) -> str:
    from metaopt.data.record_files import stem

    return file.stem if file.suffix.lower() == ".txt" else stem(file.name)


def _with(values: Sequence[Any], chosen: Sequence[int], added: Any) -> list[dict[str, Any]]:
    return [values[i] | {name: column[i] for name, column in added.items()} for i in chosen]


def _write_lines(values: Sequence[Any], path: Path, chosen: Sequence[int], added: Any) -> None:
    rows = _with(values, chosen, added)
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _write_csv(
    values: Sequence[Any], mark: str, path: Path, chosen: Sequence[int], added: Any
) -> None:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [*values[0], *ADDED], delimiter=mark)
    table.writeheader()
    table.writerows(_with(values, chosen, added))
    _write(path, text.getvalue().encode())


def _write_parquet(file: Path, path: Path, chosen: Sequence[int], added: Any) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(file)
    for name, column in added.items():
        table = table.append_column(name, pa.array(column, pa.float64()))
    sink = pa.BufferOutputStream()
    parquet.write_table(table.take(list(chosen)), sink)
    _write(path, sink.getvalue().to_pybytes())


def _write(path: Path, content: bytes) -> None:
    from metaopt.files.writing import replacing

    with replacing(path) as file:
        file.write(content)
