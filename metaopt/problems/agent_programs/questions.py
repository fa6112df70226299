"""Questions with reference answers, from a file, a folder or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metaopt.data.final_answers import canonical, final_answer
from metaopt.data.records import grouped, records
from metaopt.data.row_texts import text


class Questions(NamedTuple):
    """Questions and their answers in canonical form (`metaopt.data.final_answers`)."""

    texts: tuple[str, ...]
    references: tuple[str, ...]
    source: str


def question_file(
    source: str,
    question: str = "question",
    answer: str = "answer",
    split: str = "test",
    questions: int | None = None,
) -> Questions:
    r"""Return the questions of a file of rows, such as GSM8K's test.jsonl.

    A reference that holds `####` or `\boxed{...}` is a worked solution, whose final answer counts;
    any other is the answer itself. Rows that ask the same are one question.

    Args:
        source: a file, a folder, or owner/name of the hub; see `metaopt.data.records.records`.
        question: name of the column with the question.
        answer: name of the column with the answer.
        split: part of a data set of the hub.
        questions: most different questions, the first ones, >= 2; `None` takes all.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: malformed rows, by reason and with their places, or fewer than two questions.
    """
    if questions is not None and questions < 2:
        raise ValueError(f"questions must be at least 2, or null for all; got {questions}.")
    rows: dict[str, str] = {}
    wrong: list[tuple[str, str]] = []
    for record in records(source, split=split):
        try:
            asked, reference = _row(record.value, question, answer)
        except ValueError as reason:
            wrong.append((record.place, str(reason)))
            continue
        if len(rows) != questions:
            rows.setdefault(asked, reference)
    if wrong:
        raise ValueError(f"malformed rows of {source}, {len(wrong)} in all:{grouped(wrong)}")
    if len(rows) < 2:
        raise ValueError(f"{source} holds {len(rows)} questions; at least two are needed.")
    return Questions(tuple(rows), tuple(rows.values()), source)


def _row(row: Any, question: str, answer: str) -> tuple[str, str]:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError("is not an object; a row is {column: value}")
    asked, given = text(row, question).strip(), row.get(answer)
    given = str(given) if isinstance(given, (int, float)) and given == given else given
    reference = text({answer: given}, answer)
    worked = "####" in reference or r"\boxed{" in reference
    reference = final_answer(reference) if worked else canonical(reference)
    if not asked or not reference:
        raise ValueError(f"{question!r} and {answer!r} must not be empty")
    return asked, reference
