"""Readers of test collections: each format on a few lines, and what would be read wrongly."""

import json

import pytest

from metaopt.data.folder import find_data
from metaopt.problems.few_shot_ranking.collections import (
    FORMATS,
    SmartFormat,
    beir,
    smart,
    text_hash,
)

DOCUMENTS = """.I 1
.T
a wing
.A
wright,o.
.B
j. ae. scs. 25, 1958, 324.
.W
a wing
in air .
.X
2\t5\t1
.N
secret note
.I 2
.T
heat
.W
flows .
.K
keyword
"""
QUERIES = (
    ".I 001\n.W\nlift of wings\n.I 004\n.W\nhot\nplates\n.B\n(a journal)\n.I 9\n.W\nunjudged\n"
)
GRADED = SmartFormat("mine", "d", "q", "j", by_position=True, least=4)
HEADER = "query-id\tcorpus-id\tscore\n"
BINARY = SmartFormat("mine", "d", "q", "j")


def written(folder, judgements, documents=DOCUMENTS, queries=QUERIES):
    for name, text in (("d", documents), ("q", queries), ("j", judgements)):
        (folder / name).write_text(text)
    return folder


def mine(format, folder):
    return smart(folder, format)


def test_title_and_text_are_read_and_no_other_field(tmp_path):
    collection = mine(BINARY, written(tmp_path, "1 1 0 0.0\n"))
    assert collection.documents == {"1": "a wing in air .", "2": "heat flows ."}
    assert collection.queries == {"1": "lift of wings"}


def test_cranfield_numbers_queries_by_position_and_grades_from_the_best(tmp_path):
    collection = mine(GRADED, written(tmp_path, "1 1 1 \n1 2 4\n2 2 3\n2 1 -1\n"))
    assert collection.queries == {"1": "lift of wings", "4": "hot plates"}
    assert collection.gains == {"1": {"1": 4.0, "2": 1.0}, "4": {"2": 2.0}}
    assert collection.notes == (
        "1 of 3 queries have no relevant document.",
        "Rows of grade -1 in j say nothing of relevance.",
    )


def test_cisi_numbers_queries_by_id_and_its_third_column_is_no_grade(tmp_path):
    text = "     1     1\t0\t0.000000\n     4     02\t0\t0.000000\n"
    collection = mine(BINARY, written(tmp_path, text))
    assert collection.gains == {"1": {"1": 1.0}, "4": {"2": 1.0}}


@pytest.mark.parametrize(
    ("format", "judgements", "message"),
    [
        (GRADED, "1 1 1\n\n4 1 1\n", "j:3: there are 3 queries; got number 4"),
        (GRADED, "1 3 1\n", "j:1: there is no document 3"),
        (GRADED, "1 1 5\n", "j:1: grades are 1 to 4, or -1; got 5"),
        (GRADED, "1 1 1\n1 1 2\n", "j:2: a second judgement of document 1, another one"),
        (GRADED, "1 1 0 0.0\n", "j:1: must be query, document and grade; got '1 1 0 0.0'"),
        (BINARY, "1 1 1\n", "j:1: must be query, document and 0 0; got '1 1 1'"),
        (BINARY, "2 1 0 0.0\n", "j:1: there is no query 2"),
    ],
)
def test_a_wrong_line_of_judgements_is_named(tmp_path, format, judgements, message):
    with pytest.raises(ValueError, match=message):
        mine(format, written(tmp_path, judgements))


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("", "d holds no .I"),
        ("text\n.I 1\n", "d:1: a SMART file begins with .I 1; got 'text'"),
        (".I 1\ntext\n", "d:2: a line between .I and the first field: 'text'"),
        (".I 1\n.W\na\n.I 01\n", "d:4: a second .I 1"),
    ],
)
def test_a_wrong_line_of_documents_is_named(tmp_path, documents, message):
    with pytest.raises(ValueError, match=message):
        mine(BINARY, written(tmp_path, "", documents))


def test_documents_after_the_published_ones_are_cut_and_others_refused(tmp_path):
    digest = text_hash({"1": "a wing in air .", "2": "heat flows ."})
    format = BINARY._replace(size=2, sha256=digest)
    more = DOCUMENTS + ".I 3\n.W\ninvented\n.I 4\n.W\ninvented\n"
    with pytest.warns(UserWarning, match="2 documents at the end of d, 3 to 4, are no part"):
        collection = mine(format, written(tmp_path, "1 1 0 0.0\n", more))
    assert list(collection.documents) == ["1", "2"]
    assert "2 documents at the end" in collection.notes[0]
    for documents in (DOCUMENTS.replace("air", "water"), DOCUMENTS.split(".I 2")[0]):
        with pytest.raises(
            ValueError, match=r"d is not mine as it was published: of [12] documents "
        ):
            mine(format, written(tmp_path, "1 1 0 0.0\n", documents))


def test_unknown_formats_and_missing_files_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"format: cranfield, cisi, cacm, or a SmartFormat .*; got med"
    ):
        smart("med")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*cran\.all\.1400"):
        smart(tmp_path, "cranfield")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "queries", "relevant"), [("cranfield", 225, 1612), ("cisi", 76, 3114)]
)
def test_the_published_collections_have_their_numbers(name, queries, relevant):
    collection = smart(find_data(f"ir/{name}", name), name)
    # The copy of Cranfield's queries has one that was appended.
    assert (" queries at the end of" in collection.notes[0]) == (name == "cranfield")
    assert len(collection.documents) == FORMATS[name].size
    assert len(collection.queries) == queries
    assert sum(map(len, collection.gains.values())) == relevant


def beir_folder(folder, qrels="q1\td1\t2\nq2\td2\t0\n"):
    rows = [
        {"_id": "d1", "title": "Wings", "text": "lift"},
        {"_id": "d2", "title": "", "text": "heat"},
    ]
    queries = [{"_id": "q1", "text": "wings"}, {"_id": "q2", "text": "plates"}]
    for name, items in (("corpus", rows), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text(HEADER + qrels)
    return folder


def test_a_beir_folder(tmp_path):
    collection = beir(beir_folder(tmp_path))
    assert collection.documents == {"d1": "Wings lift", "d2": "heat"}
    assert collection.queries == {"q1": "wings"}
    assert collection.gains == {"q1": {"d1": 2.0}}
    assert collection.notes == ("1 of 2 queries have no relevant document.",)
    (tmp_path / "qrels" / "train.tsv").write_text(f"{HEADER}q2\td2\t1\n")
    assert list(beir(tmp_path, "test").queries) == ["q1"]
    with pytest.raises(ValueError, match=r"train\.tsv:2: a second judgement of document d2"):
        beir(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1"}\n', r"corpus\.jsonl:1: needs _id and text .*; got"),
        ("corpus.jsonl", '{"_id": "a", "text": ""}\n' * 2, r"corpus\.jsonl:2: a second _id a"),
        ("corpus.jsonl", '{"_id": true, "text": ""}\n', r"jsonl:1: needs _id and text"),
        ("corpus.jsonl", '{"_id": "a", "title": [1], "text": ""}\n', r"jsonl:1: needs _id and"),
        ("corpus.jsonl", '{"_id": "a", "text": "\\ud800"}\n', r"1: needs _id and .*\\ud800"),
        ("queries.jsonl", '{"_id": "q1", "text": " "}\n', r"jsonl:1: query q1 has no text"),
        ("qrels/test.tsv", f"{HEADER}q1\td1\tnan\n", r"tsv:2: needs .* a finite number; got"),
        ("queries.jsonl", "nonsense\n", r"queries\.jsonl:1: is not valid JSON"),
        ("qrels/test.tsv", f"{HEADER}q1\td7\t1\n", r"tsv:2: there is no document d7"),
        ("qrels/test.tsv", f"{HEADER}q1\td1\tyes\n", r"tsv:2: needs the columns"),
        ("qrels/test.tsv", "a\tb\nq1\td1\n", r"tsv:2: needs the columns query-id, corpus-id"),
    ],
)
def test_a_wrong_line_of_a_beir_folder_is_named(tmp_path, file, text, message):
    beir_folder(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        beir(tmp_path)


def test_a_folder_without_the_files_of_beir_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no file .*corpus\.jsonl\. A BEIR folder"
    ):
        beir(tmp_path)
    beir_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no .*qrels/dev\.tsv with the columns"):
        beir(tmp_path, "dev")
