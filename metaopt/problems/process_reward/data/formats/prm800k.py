"""PRM800K: human ratings -1, 0 and 1 of steps, with the alternatives that were rated beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import (
    MISSING,
    checked_text,
    listed,
    mapping,
    others,
    text,
)
from metaopt.problems.process_reward.data.formats.refusals import each

RATINGS = {1: 1.0, 0: 1.0, -1: 0.0, None: None}
QUESTION = {
    "ground_truth_answer": None,
    "ground_truth_solution": None,
    "pre_generated_answer": None,
    "pre_generated_verifier_score": None,
}
ROW = {
    "labeler": None,
    "timestamp": None,
    "generation": None,
    "is_quality_control_question": False,
    "is_initial_screening_question": False,
}


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
    rated: list[dict[str, Any]] = []
    given = listed(label, "steps")
    for number, step in enumerate(given):
        try:
            said, rating, rest = _step(step)
        except ValueError as reason:
            raise ValueError(f"label.steps[{number}]: {reason}") from None
        steps.append(said)
        labels.append(RATINGS[rating])
        rated.append(rest)
        if rest["picked"] is None and rest["open"] and len(step["completions"]) > 1:
            break
    written = listed(question, "pre_generated_steps", ())
    follows = bool(written) and list(written[: len(steps)]) == steps
    if follows and len(steps) == len(given):
        tail = [checked_text(x, "pre_generated_steps") for x in written[len(steps) :]]
        steps += tail
        labels += [None] * len(tail)
    answer = question.get("pre_generated_answer")
    solved = label.get("finish_reason") == "solution"
    solved |= answer is not None and answer == question.get("ground_truth_answer")
    kept: dict[str, Any] = {
        "row": others(row, ("question", "label")),
        "question": others(question, ("problem", "pre_generated_steps")),
        "label": others(label, ("steps",)),
        "rated": rated,
        "after": list(given[len(rated) :]),
    }
    if not follows and "pre_generated_steps" in question:
        kept["question"]["pre_generated_steps"] = question["pre_generated_steps"]
    return Chain(
        text(question, "problem"),
        tuple(steps),
        tuple(labels),
        outcome=True if solved else None,
        domain="prm800k",
        extra={"prm800k": kept},
    )


def _step(step: Any) -> tuple[str, int | None, dict[str, Any]]:
    """Return a step's text, its rating, and the rest of it."""
    if not isinstance(step, Mapping):
        raise ValueError(f"must be an object; got {step!r:.60}")
    completions = list(listed(step, "completions", ()))
    for number, completion in enumerate(completions):
        rating = completion.get("rating") if isinstance(completion, Mapping) else MISSING
        if rating is not None and (not isinstance(rating, int) or rating not in RATINGS):
            raise ValueError(f"completion {number} must have a rating of -1, 0, 1 or null")
    chosen, human = step.get("chosen_completion"), step.get("human_completion")
    rest = {**step, "picked": chosen, "open": human is None}
    if chosen is None and human is not None:
        said = text(human, "text") if isinstance(human, Mapping) else human
        rest["human_completion"] = others(human, ("text",)) if isinstance(human, Mapping) else ""
        return checked_text(said, "human_completion"), 1, rest
    picked = 0 if chosen is None else chosen
    if (
        isinstance(picked, bool)
        or not isinstance(picked, int)
        or picked not in range(len(completions))
    ):
        raise ValueError(
            f"chosen_completion {chosen} is none of the {len(completions)} completions, and there "
            f"is no human_completion"
        )
    taken = completions[picked]
    neutral = taken["rating"] == 0
    completions[picked] = {**others(taken, ("text", "rating")), "neutral": neutral}
    return text(taken, "text"), taken["rating"], {**rest, "completions": completions}


def to_prm800k(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return lines of PRM800K; in chains from elsewhere every step has one completion.

    Raises:
        ValueError: chains with a soft label (`harden` rounds it), or with a label of a step that
            the source left unrated.
    """
    return each(chains, _line)


def _line(chain: Chain) -> dict[str, Any]:
    kept = chain.extra.get("prm800k") or _fresh(chain)
    rated = kept["rated"]
    if any(chain.mask[len(rated) :]) or any(x not in (0, 1, None) for x in chain.labels):
        raise ValueError(
            f"a rating is -1, 0, 1 or null, of the first {len(rated)} steps; got labels "
            f"{list(chain.labels)}. `harden` rounds soft labels"
        )
    steps = [
        _unstep(said, label, rest)
        for said, label, rest in zip(chain.steps, chain.labels, rated, strict=False)
    ]
    question = {"problem": chain.prompt, **kept["question"]}
    question.setdefault("pre_generated_steps", list(chain.steps))
    label = {"steps": steps + kept["after"], **kept["label"]}
    return {**kept["row"], "question": question, "label": label}


def _unstep(said: str, label: float | None, rest: Mapping[str, Any]) -> dict[str, Any]:
    step = others(rest, ("picked", "open"))
    if rest["picked"] is None and not rest["open"]:
        if label != 1:
            raise ValueError("a labeler's own step has no rating but 1")
        human = rest["human_completion"]
        return {**step, "human_completion": said if human == "" else {"text": said, **human}}
    completions = list(step["completions"])
    picked = rest["picked"] or 0
    taken = completions[picked]
    rating = None if label is None else -1 if label == 0 else int(not taken["neutral"])
    completions[picked] = {"text": said, "rating": rating, **others(taken, ("neutral",))}
    return {**step, "completions": completions}


def _fresh(chain: Chain) -> dict[str, Any]:
    """Return what a line holds beyond the schema, for a chain from elsewhere."""
    known = max((i + 1 for i, label in enumerate(chain.labels) if label is not None), default=0)
    reason = "found_error" if chain.first_error is not None else None
    rest = {
        "completions": [{"flagged": None, "neutral": False}],
        "human_completion": None,
        "chosen_completion": 0,
        "picked": 0,
        "open": True,
    }
    solved = chain.outcome and reason is None
    finish = {"total_time": None, "finish_reason": "solution" if solved else reason}
    return {"row": ROW, "question": QUESTION, "label": finish, "rated": [rest] * known, "after": []}
