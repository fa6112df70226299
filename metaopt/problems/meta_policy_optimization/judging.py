"""How the judge is asked for the points of a rubric's items: in writing, or by p(yes) of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from metaopt.llm import Client, NotUnderstood, Parameters, Reply, Request
from metaopt.llm.chat import Message
from metaopt.llm.rubric_items import has_items
from metaopt.problems.meta_policy_optimization.item_scores import (
    item_scores,
    one_item_score,
    read_weights,
    within,
)
from metaopt.problems.meta_policy_optimization.prompts import asking, judging, judging_item
from metaopt.problems.text import ask, whole

Texts = Sequence[tuple[str, str]]
"""(query, response) pairs."""

Scores = list[dict[str, float] | None]
"""The points of each item, by response; `None` without a score."""


class Judging(Protocol):
    """Asks a judge for the points of each item."""

    def __call__(self, client: Client, rubric: str, texts: Texts, role: str = "judge") -> Scores:
        """Return the points of each item for (query, response) pairs.

        `None` stands where a request failed, or a reply does not state what was asked for.

        Raises:
            LMError: more than half of three or more requests failed.
        """
        ...

    def calls(self, rubric: str) -> int:
        """Return how many calls one response takes."""
        ...

    def needs(self) -> str:
        """Return the end of the error of a judge without scores: what is read, and what to do."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments, as JSON values."""
        ...


class WrittenPoints:
    """One question for a response, about all items; the reply states the points of each.

    A judge that replies in a form of its own is read by a class that inherits from this one and has
    a `read` of its own.

    Args:
        max_tokens: longest answer.
        per_item: ask one question for each item instead, for judges that lose count of many; a
            response has a score where every item has one.
    """

    def __init__(self, max_tokens: int = 1024, per_item: bool = False) -> None:
        self.parameters, self.per_item = Parameters(0.0, max_tokens), per_item

    def __call__(self, client: Client, rubric: str, texts: Texts, role: str = "judge") -> Scores:
        """Return the points of each item for (query, response) pairs."""
        weights = read_weights(rubric)
        if self.per_item:
            return _by_item(client, role, weights, texts, judging_item, self.parameters, _written)
        requests = [Request(role, judging(rubric, *pair), self.parameters) for pair in texts]
        replies = map(whole, ask(client, requests) if requests else [])
        return [None if reply is None else self._points(reply, rubric) for reply in replies]

    def read(self, reply: str, rubric: str) -> Sequence[float] | None:
        """Return the points of the items, in their order, that a whole reply states.

        `None` where it does not state all of them, which is no score and enters nothing. Where
        other than one number for each item is returned, or points that are not between 0 and an
        item's weight, there is no score either.
        """
        weights = read_weights(rubric)
        scores = item_scores(reply, weights, has_items(rubric))
        return None if scores is None else [scores[name] for name in weights]

    def _points(self, reply: str, rubric: str) -> dict[str, float] | None:
        points, weights = self.read(reply, rubric), read_weights(rubric)
        if points is None or len(points) != len(weights):
            return None
        inside = map(within, points, weights.values())
        return dict(zip(weights, points, strict=True)) if all(inside) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments, as JSON values."""
        return {"max_tokens": self.parameters.max_tokens, "per_item": self.per_item}

    def calls(self, rubric: str) -> int:
        """Return 1, or the number of items where each is asked about."""
        return len(read_weights(rubric)) if self.per_item else 1

    def needs(self) -> str:
        """Return what a reply must state, and what to do where it does not."""
        yes_no = "+judging@problem.judging=meta_policy_optimization/yes_no for small models."
        if self.per_item:
            return (
                "every reply about an item must end with its points, between 0 and its weight. "
                "Ask a larger model, raise problem.judging.max_tokens where replies are cut, or "
                f"read probabilities: {yes_no}"
            )
        return (
            "a reply must state points between 0 and its weight for every item of the rubric, "
            "once, and their sum in its last line. Ask a larger model, raise problem.max_tokens "
            "(problem.judging.max_tokens where a judging is set) where replies are cut, or judge "
            "item by item: "
            "+judging@problem.judging=meta_policy_optimization/written "
            f"problem.judging.per_item=true, or {yes_no} Replies in another form are read by a "
            "class that inherits from WrittenPoints and has a read of its own."
        )


class YesNo:
    """One question for each item; it earns its weight times p(yes) / (p(yes) + p(no)).

    For judges whose written points do not parse, as those of small models: nothing is written, and
    the probabilities of the two answers are read. What matters of them is their order within a
    group of responses to one query, so that a judge that leans to one of them does no harm.

    Args:
        choices: the answers for yes and for no, each one token.
        prefill: the beginning of the answer. Where it ends without a space, choices begin with one.

    Raises:
        ValueError: other than two choices.
    """

    def __init__(self, choices: Sequence[str] = ("Yes", "No"), prefill: str = "") -> None:
        if len(choices) != 2:
            raise ValueError(f"YesNo needs two choices, for yes and for no; got {list(choices)}.")
        self.parameters = Parameters(choices=tuple(choices), prefill=prefill)

    def __call__(self, client: Client, rubric: str, texts: Texts, role: str = "judge") -> Scores:
        """Return the points of each item for (query, response) pairs."""
        weights = read_weights(rubric)
        return _by_item(client, role, weights, texts, asking, self.parameters, _likely)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments, as JSON values."""
        return {"choices": list(self.parameters.choices), "prefill": self.parameters.prefill}

    def calls(self, rubric: str) -> int:
        """Return the number of items."""
        return len(read_weights(rubric))

    def needs(self) -> str:
        """Return which probabilities are read, and what to do where there are none."""
        return (
            f"the judge must give one of {list(self.parameters.choices)} a probability above 0 "
            "for every item. Set problem.judging.choices and problem.judging.prefill to how the "
            "model begins its answers."
        )


def not_understood(scored: int, count: int, judging: Judging) -> NotUnderstood:
    """Return the error of a judge whose replies hold next to no scores."""
    return NotUnderstood(
        f"judge: {count - scored} of {count} rollouts have no score: {judging.needs()}", "judge"
    )


def _by_item(
    client: Client,
    role: str,
    weights: Mapping[str, float],
    texts: Texts,
    question: Callable[[str, float, str, str], tuple[Message, ...]],
    parameters: Parameters,
    read: Callable[[Reply | None, float], float | None],
) -> Scores:
    """Ask about each item of each response; return the points that are read of the replies."""
    requests = [
        Request(role, question(name, weight, *pair), parameters)
        for pair in texts
        for name, weight in weights.items()
    ]
    replies = iter(ask(client, requests) if requests else [])
    scores: Scores = []
    for _ in texts:
        read_points = {name: read(next(replies), weight) for name, weight in weights.items()}
        points = {name: each for name, each in read_points.items() if each is not None}
        scores.append(points if len(points) == len(weights) else None)
    return scores


def _written(reply: Reply | None, weight: float) -> float | None:
    text = whole(reply)
    return None if text is None else one_item_score(text, weight)


def _likely(reply: Reply | None, weight: float) -> float | None:
    mass = sum(reply.probabilities) if reply else 0.0
    return None if reply is None or mass <= 0 else weight * reply.probabilities[0] / mass + 0.0
