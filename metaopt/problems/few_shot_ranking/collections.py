"""Test collections: documents, queries and judgements, in SMART files or in a BEIR folder.

| collection | documents | judged queries | grades |
|---|---|---|---|
| Cranfield | 1,400 abstracts of aeronautics | 225 | 1 (best) to 4, read as gains 4 to 1 |
| CISI | 1,460 abstracts of library science | 76 of 112 | relevant |
| CACM | 3,204 titles, half of them with abstracts | 52 of 64 | relevant |

Documents of CISI and CACM that nobody judged count as irrelevant, as everywhere in retrieval.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from metaopt.data.folder import find_data
from metaopt.data.records import Record, records

FIELD = re.compile(r"\.([A-Z])\s*$")
NUMBER = re.compile(r"\.I\s+(\d+)\s*$")


class Collection(NamedTuple):
    """Texts and judgements, by the ids of the collection.

    Args:
        name: for tables and cards.
        documents: title and text, in the order of the file.
        queries: those with a relevant document.
        gains: of the relevant documents of each query, > 0.
        notes: what was left out, in sentences.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    gains: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()


class SmartFormat(NamedTuple):
    """How a collection in SMART files is written.

    Args:
        name: of the collection.
        documents, queries, judgements: names of the files.
        by_position: whether judgements number queries by their position in the file, not by `.I`.
        least: the largest grade, that of the least relevant documents: a grade g is the gain
            least + 1 - g, and -1 is no judgement. 0 where a row says that a document is relevant.
        size: number of documents; 0 where any will do.
        sha256: of the texts of these documents, as `text_hash` gives it, or "".
        asked: number of queries; 0 where any will do.

    Example:
        >>> SmartFormat("MED", "MED.ALL", "MED.QRY", "MED.REL").least
        0
    """

    name: str
    documents: str
    queries: str
    judgements: str
    by_position: bool = False
    least: int = 0
    size: int = 0
    sha256: str = ""
    asked: int = 0


FORMATS = {
    "cranfield": SmartFormat(
        "Cranfield", "cran.all.1400", "cran.qry", "cranqrel", by_position=True, least=4, size=1400,
        sha256="8eef36561f99a50d6b45c995a7912fce4e994ff9cf90945172ab489b8ecc7f1e", asked=225,
    ),
    "cisi": SmartFormat(
        "CISI", "CISI.ALL", "CISI.QRY", "CISI.REL", size=1460,
        sha256="b3ff8dc01ad05d91f125681d1fcc2c27ecbbcb6b25ac8ea092c5d8d1cbd7df93", asked=112,
    ),
    "cacm": SmartFormat(
        "CACM", "cacm.all", "query.text", "qrels.text", size=3204,
        sha256="03191977736de88edd2c011061c7d8ff4b5674f61ef37e65b4ffcd162cd0a643", asked=64,
    ),
}  # fmt: skip


def smart(source: str | Path = "cranfield", format: str | SmartFormat | None = None) -> Collection:
    """Return a collection from SMART files.

    Read are title and text, `.T` and `.W`; the title once where the text begins with it. Authors,
    sources, notes and cross references are not: `.X` lists related documents.

    Args:
        source: cranfield, cisi or cacm, which `metaopt-fetch` brings; or the folder of the files.
        format: of a folder's files: cranfield, cisi, cacm or another.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that cannot be read, or texts that are not those that were published.
    """
    if not isinstance(format, SmartFormat):
        name = str(source if format is None else format)
        if name not in FORMATS:
            raise ValueError(
                f"a folder of SMART files needs a format: {', '.join(FORMATS)}, or a SmartFormat "
                f"that names its files; got {name}."
            )
        format = FORMATS[name]
    root = Path(source).expanduser()
    if str(source) in FORMATS and not root.is_dir():
        root = find_data(f"ir/{source}", str(source))
    path = root / format.documents
    documents, notes = _cut(smart_texts(path), format.size, f"documents at the end of {path.name}")
    _check_published(path, documents, format)
    path = root / format.queries
    texts, more = _cut(smart_texts(path), format.asked, f"queries at the end of {path.name}")
    for note in notes:  # these change rankings; queries that nobody judged change nothing
        warnings.warn(note, stacklevel=2)
    notes += more
    gains = smart_gains(root / format.judgements, format, list(texts), documents)
    unjudged = len(texts) - len(gains)
    if unjudged:
        notes.append(f"{unjudged} of {len(texts)} queries have no relevant document.")
    if format.least:
        notes.append(f"Rows of grade -1 in {format.judgements} say nothing of relevance.")
    return Collection(
        format.name, documents, {q: texts[q] for q in texts if q in gains}, gains, tuple(notes)
    )


def smart_texts(path: Path) -> dict[str, str]:
    """Return title and text by id of a SMART file's documents or queries; ids without zeros.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line.
    """
    fields: dict[str, dict[str, list[str]]] = {}
    into: list[str] | None = None
    for line, text in _lines(path):
        number, field = NUMBER.match(text), FIELD.match(text)
        if number:
            key = str(int(number[1]))
            if key in fields:
                raise ValueError(f"{path}:{line}: a second .I {key}.")
            fields[key], into = {}, None
        elif not fields:
            if text.strip():
                raise ValueError(f"{path}:{line}: a SMART file begins with .I 1; got {text[:60]!r}")
        elif field:
            into = fields[next(reversed(fields))].setdefault(field[1], [])
        elif into is not None:
            into.append(text)
        elif text.strip():
            raise ValueError(f"{path}:{line}: a line between .I and the first field: {text[:60]!r}")
    if not fields:
        raise ValueError(f"{path} holds no .I, so neither documents nor queries.")
    return {key: _joined(parts) for key, parts in fields.items()}


def _joined(fields: Mapping[str, list[str]]) -> str:
    title, body = (" ".join(" ".join(fields.get(name, [])).split()) for name in "TW")
    return body if body.startswith(title) else f"{title} {body}".strip()


def text_hash(texts: Mapping[str, str]) -> str:
    """Return the SHA-256 of texts in their order, line breaks and runs of spaces aside."""
    return hashlib.sha256("\n".join(texts.values()).encode()).hexdigest()


def _cut(texts: dict[str, str], size: int, what: str) -> tuple[dict[str, str], list[str]]:
    """Return the first texts, and a sentence about the others."""
    if not size or len(texts) <= size:
        return texts, []
    names = list(texts)
    note = (
        f"{len(texts) - size} {what}, {names[size]} to {names[-1]}, are no part of the collection: "
        f"left out."
    )
    return {name: texts[name] for name in names[:size]}, [note]


def _check_published(path: Path, documents: Mapping[str, str], format: SmartFormat) -> None:
    digest = text_hash(documents)
    if (format.size and len(documents) != format.size) or digest != (format.sha256 or digest):
        raise ValueError(
            f"{path} is not {format.name} as it was published: of {len(documents)} documents "
            f"({format.size} are expected) the texts have the SHA-256 {digest}. Take another copy, "
            f"or give a SmartFormat of your own without size and sha256."
        )


def smart_gains(
    path: Path, format: SmartFormat, queries: list[str], documents: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return the gains of relevant documents by query and document.

    Args:
        path: of the judgements: query, document and grade; or query, document and more columns.
        format: what they mean.
        queries: ids in the order of their file.
        documents: by id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line.
    """
    gains: dict[str, dict[str, float]] = {}
    known = set(queries)
    for line, text in _lines(path):
        columns = text.split()
        if not columns:
            continue
        place = f"{path}:{line}"
        if len(columns) != (3 if format.least else 4) or not all(
            re.fullmatch(r"-?\d+", value) for value in columns[: 3 if format.least else 2]
        ):
            kind = "query, document and grade" if format.least else "query, document and 0 0"
            raise ValueError(f"{place}: must be {kind}; got {text.strip()[:60]!r}")
        query, document = str(int(columns[0])), str(int(columns[1]))
        if format.by_position:
            if not 1 <= int(query) <= len(queries):
                raise ValueError(f"{place}: there are {len(queries)} queries; got number {query}.")
            query = queries[int(query) - 1]
        gain = 1.0
        if format.least:
            grade = int(columns[2])
            if grade == -1:
                continue
            if not 1 <= grade <= format.least:
                raise ValueError(f"{place}: grades are 1 to {format.least}, or -1; got {grade}.")
            gain = format.least + 1.0 - grade
        _add(gains, query, document, gain, place, known, documents)
    return _relevant(gains)


def beir(source: str | Path, split: str | None = None) -> Collection:
    """Return a collection from a BEIR folder: corpus.jsonl, queries.jsonl and qrels/*.tsv.

    Args:
        source: the folder of them; files may be compressed (.gz, .zst).
        split: train, dev or test: one file of judgements; `None` for all.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: with file and line.
    """
    root = Path(source).expanduser()
    documents, texts = beir_texts(root, "corpus"), beir_texts(root, "queries")
    files = sorted((root / "qrels").glob(f"{split or '*'}.tsv*"))
    if not files:
        raise FileNotFoundError(
            f"there is no {root / 'qrels'}/{split or '*'}.tsv with the columns query-id, "
            f"corpus-id, score."
        )
    gains: dict[str, dict[str, float]] = {}
    for file in files:
        for query, document, gain, place in judgements(records(file)):
            _add(gains, query, document, gain, place, texts, documents)
    gains = _relevant(gains)
    none = len(texts) - len(gains)
    notes = (f"{none} of {len(texts)} queries have no relevant document.",) if none else ()
    queries = {query: texts[query] for query in texts if query in gains}
    return Collection(root.resolve().name, documents, queries, gains, notes)


def judgements(rows: Iterable[Record]) -> Iterator[tuple[str, str, float, str]]:
    """Yield query, document, score and place of BEIR's rows.

    Raises:
        ValueError: while reading, with file and line.
    """
    for row in rows:
        _refuse(row)
        try:
            query, document = (_id(row.value[name]) for name in ("query-id", "corpus-id"))
            score = float(row.value["score"])
            if not math.isfinite(score):
                raise ValueError(f"score={score}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{row.place}: needs the columns query-id, corpus-id and score, a finite number; "
                f"got {str(row.value)[:100]}."
            ) from error
        yield query, document, score, row.place


def beir_texts(folder: Path, name: str) -> dict[str, str]:
    """Return the texts of corpus.jsonl or queries.jsonl by id, a title in front.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line.
    """
    paths = [folder / f"{name}.jsonl{end}" for end in ("", ".gz", ".zst")]
    path = next((path for path in paths if path.is_file()), paths[0])
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}. A BEIR folder has corpus.jsonl and queries.jsonl, with _id "
            f"and text (and title) on each line, and qrels/*.tsv."
        )
    texts: dict[str, str] = {}
    for record in records(path):
        _refuse(record)
        value = record.value
        try:
            key, title, text = _id(value["_id"]), value.get("title") or "", value["text"]
            if not isinstance(title, str) or not isinstance(text, str):
                raise TypeError("a text that is none")
            f"{key} {title} {text}".encode()  # half of a surrogate pair is no text
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{record.place}: needs _id and text (and title): texts, the id or an integer; got "
                f"{ascii(value)[:100]}."
            ) from error
        if key in texts:
            raise ValueError(f"{record.place}: a second _id {key}.")
        texts[key] = f"{title} {text}".strip()
        if name == "queries" and not texts[key]:
            raise ValueError(f"{record.place}: query {key} has no text.")
    return texts


def _id(value: object) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise TypeError("an id is a text or an integer")
    return str(value)


def _refuse(record: Record) -> None:
    if isinstance(record.value, ValueError):
        raise ValueError(f"{record.place}: {record.value}") from record.value


def _add(
    gains: dict[str, dict[str, float]],
    query: str,
    document: str,
    gain: float,
    place: str,
    queries: Container[str],
    documents: Container[str],
) -> None:
    if document not in documents:
        raise ValueError(f"{place}: there is no document {document}.")
    if query not in queries:
        raise ValueError(f"{place}: there is no query {query}.")
    row = gains.setdefault(query, {})
    if row.get(document, gain) != gain:
        raise ValueError(f"{place}: a second judgement of document {document}, another one.")
    row[document] = gain


def _relevant(gains: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the judgements > 0, of the queries that have one."""
    above = {q: {d: gain for d, gain in row.items() if gain > 0} for q, row in gains.items()}
    return {query: row for query, row in above.items() if row}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from None
    return iter(enumerate(text.split("\n"), 1))
