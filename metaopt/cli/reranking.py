"""`metaopt score RUN FOLDER` for a run of few-shot re-ranking: documents by marked ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from metaopt.files.errors import FolderError

if TYPE_CHECKING:
    from metaopt.problems.few_shot_ranking.saved_ranker import Ranked, SavedRanker

SHOWN = 10
"""Documents of a query that are printed."""


class Query(NamedTuple):
    """A query and the documents that a user has marked.

    Args:
        name: its id, or its text.
        text: what is asked.
        relevant, irrelevant: ids of documents.
    """

    name: str
    text: str
    relevant: Sequence[str]
    irrelevant: Sequence[str]


def ranker_of(run: Path) -> Path | None:
    """Return the folder of a run's ranker, which may be `run` itself; `None` without one."""
    for folder in (run / "ranker", run):
        if (folder / "ranker.json").is_file():
            return folder
    return None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what re-ranking takes."""
    add = parser.add_argument_group("re-ranking").add_argument
    add("--query", metavar="TEXT", help="what is asked")
    add("--relevant", nargs="+", metavar="ID", default=[], help="marked documents")
    add("--irrelevant", nargs="+", metavar="ID", default=[], help="marked documents")
    add("--marks", type=Path, metavar="TSV", help="query-id, corpus-id, score of several queries")
    add("--ranking", choices=("scorer", "knn"), default="scorer", help="knn: the encoder alone")
    add("--fuse", action="store_true", help="with BM25 and the query expanded by relevant words")


def given(options: argparse.Namespace) -> list[str]:
    """Return the options of re-ranking that were given."""
    names = ("query", "relevant", "irrelevant", "marks", "fuse")
    ranking = ["ranking"] if options.ranking != "scorer" else []
    return [f"--{name}" for name in names if getattr(options, name)] + [f"--{x}" for x in ranking]


def rerank(folder: Path, options: argparse.Namespace) -> int:
    """Rank the documents of a BEIR folder for each query, print the first and write all.

    Raises:
        FileNotFoundError: the folder lacks a file.
        FolderError: the ranker cannot be read.
        ValueError: marks that cannot be used, or a file that would be replaced.
    """
    from metaopt.files.writing import replacing
    from metaopt.problems.few_shot_ranking.collections import beir_texts
    from metaopt.problems.few_shot_ranking.saved_ranker import SavedRanker

    wrong = [
        n for n in ("columns", "top", "llm", "limits") if getattr(options, n) not in (None, [])
    ]
    if wrong:
        raise ValueError(f"--{wrong[0]} is not of re-ranking, which {options.run} is for.")
    root: Path = options.file
    if not root.is_dir():
        raise FolderError(
            f"there is no folder {root}. Give a BEIR folder, with corpus.jsonl: _id and text (and "
            f"title) on each line."
        )
    out: Path = options.out or root / "ranked.jsonl"
    if out.exists():
        raise ValueError(f"{out} exists. Delete it, or name another file with --out.")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} to.")
    documents = beir_texts(root, "corpus")
    queries = [*_queries(options, root)]
    ranker = SavedRanker(folder)
    for query in queries:  # before the first of them takes time
        ranker.check(query.text, documents, query.relevant, query.irrelevant, options.ranking)
    index = ranker.index(documents)
    lines = []
    if options.ranking == "scorer" and not options.fuse:
        _say_if_idle(ranker, queries)
    for query in queries:
        ranked = ranker(
            query.text, documents, query.relevant, query.irrelevant, options.ranking,
            options.fuse, index,
        )  # fmt: skip
        lines += _lines(query, ranked)
        _show(query, ranked, documents)
    with replacing(out) as file:
        file.write("".join(lines).encode())
    print(f"{len(lines)} documents of {len(queries)} quer{_ies(len(queries))} written to {out}")
    return 0


def _say_if_idle(ranker: SavedRanker, queries: Sequence[Query]) -> None:
    marked = [query for query in queries if query.relevant and query.irrelevant]
    if marked and not any(
        ranker.choice(len(query.relevant), len(query.irrelevant))[1] for query in marked
    ):
        print(
            "metaopt-score: on the validation queries of this run 0 steps of fine-tuning were "
            "best, so marked documents leave the ranking and change nothing else in it. --fuse "
            "and --ranking knn use them.",
            file=sys.stderr,
        )


def _queries(options: argparse.Namespace, root: Path) -> Iterator[Query]:
    from metaopt.data.records import records
    from metaopt.problems.few_shot_ranking.collections import beir_texts, judgements

    if (options.query is None) == (options.marks is None):
        raise ValueError(
            "re-ranking takes --query TEXT with --relevant and --irrelevant, or --marks TSV with "
            "the columns query-id, corpus-id and score (0: irrelevant); give one of them."
        )
    if options.query is not None:
        yield Query(options.query, options.query, options.relevant, options.irrelevant)
        return
    if options.relevant or options.irrelevant:
        raise ValueError("--relevant and --irrelevant belong to --query; --marks has its own.")
    texts = beir_texts(root, "queries")
    marks: dict[str, tuple[list[str], list[str]]] = {}
    for query, document, score, place in judgements(records(options.marks)):
        if query not in texts:
            raise ValueError(f"{place}: there is no query {query} in {root}.")
        marks.setdefault(query, ([], []))[score <= 0].append(document)
    for query, (relevant, irrelevant) in marks.items():
        yield Query(query, texts[query], relevant, irrelevant)


def _lines(query: Query, ranked: Ranked) -> list[str]:
    rows = zip(ranked.ids, ranked.scores, ranked.first_stage, strict=True)
    return [
        json.dumps(
            {"query": query.name, "rank": rank, "_id": name, "score": score, "bm25_rank": before},
            ensure_ascii=False,
        )
        + "\n"
        for rank, (name, score, before) in enumerate(rows, 1)
    ]


def _show(query: Query, ranked: Ranked, documents: Mapping[str, str]) -> None:
    print(f"{query.name}\n  rank  BM25  document")
    for rank, (name, before) in enumerate(zip(ranked.ids, ranked.first_stage, strict=True), 1):
        if rank > SHOWN:
            break
        print(f"  {rank:>4}  {before:>4}  {name}  {' '.join(documents[name].split())[:60]}")


def _ies(count: int) -> str:
    return "y" if count == 1 else "ies"
