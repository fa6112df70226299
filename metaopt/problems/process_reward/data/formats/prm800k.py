"""PRM800K: human ratings -1, 0 and 1 of steps, with the alternatives that were rated as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaopt.data.row_texts import checked_text, text
from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import MISSING, listed, mapping

RATINGS = {1: 1.0, 0: 1.0, -1: 0.0, None: None}


def from_prm800k(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a line of PRM800K (Lightman et al., ICLR 2024).

    A step is the completion that was chosen, or the labeler's own where none was, or else the
    first one; where the labeler rated several and took none, the chain ends. Ratings 1 and 0
    (neutral) are right, as in the paper's reward model, and -1 is wrong. The steps that the policy
    wrote after the last one that was rated (phase 2) follow, unlabelled. The outcome is true where
    the labeler ended at a solution or the policy's answer is the reference's text, and unknown
    elsewhere: an unequal text may be an equal number.

    Raises:
        ValueError: says which column is malformed.
    """
    question, label = mapping(row, "question"), mapping(row, "label")
    steps: list[str] = []
    labels: list[float | None] = []
    given = listed(label, "steps")
    for number, step in enumerate(given):
        try:
            content, rating, untaken = _step(step)
        except ValueError as reason:
            raise ValueError(f"label.steps[{number}]: {reason}") from None
        steps.append(content)
        labels.append(RATINGS[rating])
        if untaken:
            break
    written = listed(question, "pre_generated_steps", ())
    if len(steps) == len(given) and written and list(written[: len(steps)]) == steps:
        rest = [checked_text(x, "pre_generated_steps") for x in written[len(steps) :]]
        steps += rest
        labels += [None] * len(rest)
    answer = question.get("pre_generated_answer")
    solved = label.get("finish_reason") == "solution"
    solved |= answer is not None and answer == question.get("ground_truth_answer")
    return Chain(
        text(question, "problem"),
        tuple(steps),
        tuple(labels),
        outcome=True if solved else None,
        domain="prm800k",
    )


def _step(step: Any) -> tuple[str, int | None, bool]:
    """Return a step's text, its rating, and whether it is one of several that were not taken."""
    if not isinstance(step, Mapping):
        raise ValueError(f"must be an object; got {step!r:.60}")
    completions = listed(step, "completions", ())
    for number, completion in enumerate(completions):
        rating = completion.get("rating") if isinstance(completion, Mapping) else MISSING
        if rating is not None and (not isinstance(rating, int) or rating not in RATINGS):
            raise ValueError(f"completion {number} must have a rating of -1, 0, 1 or null")
    chosen, human = step.get("chosen_completion"), step.get("human_completion")
    if chosen is None and human is not None:
        content = text(human, "text") if isinstance(human, Mapping) else human
        return checked_text(content, "human_completion"), 1, False
    position = 0 if chosen is None else chosen
    if (
        isinstance(position, bool)
        or not isinstance(position, int)
        or position not in range(len(completions))
    ):
        raise ValueError(
            f"chosen_completion {chosen} is none of the {len(completions)} completions, and there "
            f"is no human_completion"
        )
    completion = completions[position]
    return text(completion, "text"), completion["rating"], chosen is None and len(completions) > 1
