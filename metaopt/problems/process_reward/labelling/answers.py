"""The right answers of questions, from your own files or those of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.data.final_answers import boxed
from metaopt.data.records import records
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.data.formats.columns import Renaming, identifier
from metaopt.problems.process_reward.data.meta_set import question_key

QUESTIONS = ("question", "prompt", "query", "problem", "input")
ANSWERS = ("answer", "reference", "target", "ground_truth_answer")


def reference_answers(
    chains: Sequence[Chain], source: str | Path, renaming: Renaming | None = None
) -> list[str]:
    r"""Return the right answer of each chain's question.

    A row of the source has a question (question, prompt, query, problem or input) and an answer
    (answer, reference, target or ground_truth_answer): a final answer, or a worked solution whose
    final answer stands after `####`, as in GSM8K, or in `\boxed{...}`, as in MATH. Questions are
    compared by `question_key`.

    Args:
        chains: their questions are looked up.
        source: a file, a folder or a data set of the hub; other rows are passed over.
        renaming: of columns that have other names in the source.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: questions without an answer, with their count, or with two different ones.
    """
    answers: dict[str, str] = {}
    first_columns: list[str] = []
    for record in records(source):
        if not isinstance(record.value, Mapping):
            continue
        first_columns = first_columns or list(map(str, record.value))
        row = renaming(record.value) if renaming else record.value
        question, answer = _first(row, QUESTIONS), _first(row, ANSWERS)
        if not question or not answer:
            continue
        key, answer = question_key(question), _final(answer)
        if answers.setdefault(key, answer) != answer:
            raise ValueError(
                f"{record.place}: the question {question!r:.60} has the answer {answer!r:.40} here "
                f"and {answers[key]!r:.40} before."
            )
    keys = [question_key(chain.prompt) for chain in chains]
    missing = [i for i, key in enumerate(keys) if key not in answers]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(chains)} chains ask a question that {source} does not answer; "
            f"the first is {chains[missing[0]].prompt!r:.80}. A row needs one of "
            f"{', '.join(QUESTIONS)} and one of {', '.join(ANSWERS)}; the first row's columns are "
            f"{', '.join(first_columns) or 'none'}. --answers FILE names another file with them."
        )
    return [answers[key] for key in keys]


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    return next((identifier(row, column) for column in columns if column in row), "")


def _final(answer: str) -> str:
    return boxed(answer) or answer.rpartition("####")[2].strip()
