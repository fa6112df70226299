"""What is not a preference: malformed rows, damaged files and missing sources are named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from preference_files import BAD, GOOD, ROWS, USER, write

from metaopt.problems.reward_model.data.pair_sources import SHARED, preferences

OTHER = {"role": "user", "content": "r"}
LABELLED = {"prompt": "q", "response_A": "a", "response_B": "b"}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "is not valid JSON"),
        ([1], "type list, not an object"),
        ({"text": "x"}, "has no column 'chosen'; columns are text"),
        ({"chosen": "a"}, "'rejected' is missing"),
        ({"rejected": "a"}, "'chosen' is missing"),
        ({"chosen": None, "rejected": "a"}, "'chosen' is missing"),
        ({"chosen": "a", "rejected": 3}, "'rejected' is a value of type int, not a text"),
        ({"chosen": True, "rejected": "a"}, "type bool"),
        ({"chosen": "a", "rejected": " a\n"}, "'chosen' and 'rejected' are equal"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are equal"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "are equal"),
        ({"prompt": "p", "chosen": "a", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "'chosen' is empty"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "'rejected' is empty"),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant:"}, "'rejected' is empty"),
        ({"chosen": [], "rejected": [USER, BAD]}, "'chosen' is empty"),
        ({"prompt": 1, "chosen": "a", "rejected": "b"}, "'prompt' is a value of type int"),
        ({"chosen": "a", "rejected": [USER, BAD]}, "not of the same kind"),
        ({"chosen": [{"content": "a"}], "rejected": [BAD]}, "list of {role, content}"),
        ({"chosen": [{"role": "user", "content": 1}], "rejected": [BAD]}, "type int"),
        ({"chosen": "a", "rejected": "b", "margin": "one"}, "'margin' must be a finite number"),
        ('{"chosen": "a", "rejected": "b", "margin": NaN}', "'margin' must be a finite number"),
        ({"chosen": "a", "rejected": "b", "strength": True}, "'strength' must be"),
        ('{"chosen": "\\ud800", "rejected": "b"}', "surrogate"),
        ({"instruction": "i", "response1": "a", "response2": "b"}, "'annotator1', ... must be"),
        ({"instruction": "i", "response1": "a", "response2": "b", "annotator1": 3}, "must be 0"),
        ({"instruction": "i", "response1": None, "response2": "b"}, "'response1' is missing"),
        ({"instruction": " ", "response1": "a", "response2": "b"}, "'instruction' is empty"),
        ({"input": "i", "output_1": "a", "output_2": "b", "label": 0}, "'label' must be 1 or 2"),
        ({"input": "i", "output_1": "a", "output_2": "a", "label": 1}, "are equal"),
        ({"question": "q", "response_A": "a", "response_B": "b", "label": "A"}, "must be A>B, B>A"),
        ({"question": "q", "response_A": "a", "label": "A>B"}, "'response_B' is missing"),
        # Texts alone do not say whose turn each is.
        ({"prompt": "p", "chosen": [["a", "b"]], "rejected": [["c"]]}, "list of {role, content}"),
        ({"prompt": ["p", "q"], "chosen": "a", "rejected": "b"}, "'prompt' must be a text or a"),
        # A side without an answer.
        ({"chosen": [USER, GOOD, USER], "rejected": [USER, BAD]}, "'chosen' must end with the"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD, USER]}, "'rejected' must end with the"),
        (
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
                "rejected": "\n\nHuman: a\n\nAssistant: d",
            },
            "'chosen' must end with the assistant's turn",
        ),
        (
            {
                "chosen": "Human: a\n\nAssistant: b\n\nHuman: c",
                "rejected": "Human: a\n\nAssistant: d",
            },
            "'chosen' must end with the assistant's turn",
        ),
        *(
            (
                {"prompt": "p", "chosen": f"{user}a{end}{bot}b{end}{user}c", "rejected": "d"},
                "'chosen' must end with the assistant's turn",
            )
            for user, bot, end in (
                ("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
                ("<|user|>\n", "<|assistant|>\n", "\n"),
                ("<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>\n"),
                ("User: ", "Assistant: ", "\n"),
            )
        ),
        (
            {"prompt": "p", "chosen": "a\n<|im_start|>user\nc", "rejected": "d"},
            "'chosen' must end with the assistant's turn",
        ),
        ({"prompt": "p", "chosen": "<|user|>a<|assistant|>", "rejected": "d"}, "'chosen' is empty"),
        # Answers to different questions.
        ({"chosen": [USER, GOOD], "rejected": [OTHER, BAD]}, "answer different questions"),
        (
            {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, OTHER, BAD]},
            "answer different questions",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "answer different questions",
        ),
        (
            {"chosen": "<|user|>a<|assistant|>b", "rejected": "<|user|>c<|assistant|>b"},
            "answer different questions",
        ),
        ({"chosen": "a", "rejected": "b", "margin": -3.0}, "'margin' must be 0 or more"),
        ({"prompt": "p", "chosen": ["a", "a "], "rejected": ["b"]}, "'chosen' has an answer twice"),
        ({**LABELLED, "chosen": "response_A", "rejected": "response_B"}, "name other columns"),
        ({**LABELLED, "chosen": "b", "rejected": "a"}, "name other columns"),
        (
            {"question": "q", "better": "a", "worse": "b"},
            "columns={prompt: question, chosen: better, rejected: worse} gives the names",
        ),
        ({"prompt": "p", "responses": ["a", "b"]}, "Formats: chosen, rejected (and prompt); "),
    ],
)
def test_a_malformed_row_is_refused_or_reported_by_its_number(
    tmp_path: Path, bad: object, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[0], "", bad, ROWS[1])
    with pytest.raises(ValueError, match="1 malformed") as error:
        preferences(path)
    assert "1 in row 3" in str(error.value)
    assert says in str(error.value)
    with caplog.at_level(logging.WARNING):
        result = preferences(path, malformed="report")
    assert [(m.source, m.row) for m in result.malformed] == [("a.jsonl", 3)]
    assert says in result.malformed[0].reason
    assert [p.row for p in result.pairs] == [1, 4]
    assert caplog.messages == [result.report()]


def test_a_report_counts_by_reason_and_quotes_nothing(tmp_path: Path) -> None:
    wrong = [{"chosen": f"secret {i}", "rejected": f"secret {i}"} for i in range(103)]
    path = write(tmp_path / "a.jsonl", ROWS[0], *wrong, {"chosen": "secret", "rejected": ""})
    report = preferences(path, malformed="report").report()
    assert "105 rows, 1 pairs, 0 ties, 104 malformed" in report
    assert "are equal: 103 in row 2, 3, 4 and 100 more\n" in report
    assert "'rejected' is empty: 1 in row 105" in report
    assert "secret" not in report


@pytest.mark.parametrize(("name", "data"), [("a.json", "[1,"), ("a.jsonl.gz", "no gzip")])
def test_a_damaged_file_is_refused_also_where_malformed_rows_are_reported(
    tmp_path: Path, name: str, data: str
) -> None:
    path = tmp_path / name
    path.write_text(data)
    with pytest.raises(ValueError, match=name):
        preferences(str(path), malformed="report")


def test_a_source_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no record"):
        preferences(write(tmp_path / "a.jsonl"))


def test_a_missing_source_is_named_and_the_known_ones_are_listed() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"source=hh: there is no .*hh_harmless, pandalm, llmbar"
    ):
        preferences("hh")


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(ValueError, match=r"columns may rename prompt, chosen, .*; got answer"):
        preferences("pandalm", {"answer": "x"})


@pytest.mark.parametrize("name", SHARED)
def test_a_missing_shared_file_says_where_to_put_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"metaopt-fetch .*METAOPT_DATA"):
        preferences(name)


def test_an_unknown_treatment_is_refused() -> None:
    with pytest.raises(ValueError, match="one of refuse, report; got 'drop'"):
        preferences("pandalm", malformed="drop")
