"""Simulated models of judge calibration: a judge made of criteria, and a writer of rubrics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from metaopt.llm import SimulatedLM
from metaopt.llm.chat import Message
from metaopt.llm.rubric import (
    HIGH,
    LOW,
    Rubric,
    graded,
    parse,
    read_rubric_numbers,
    round_score,
)
from metaopt.problems.template_evolution.prompts import Example, shown_examples, shown_templates
from metaopt.problems.template_evolution.solution_criteria import CRITERIA, measure

FIRST = Rubric(
    {
        "length": 0.5,
        "steps": 0.5,
        "calculations": 0.5,
        "arithmetic": 0.5,
        "numbers used": 0.3,
        "grounding": 0.0,
        "chaining": 0.0,
        "agreement": 0.5,
        "whole answer": 0.0,
        "repetition": 0.0,
    },
    preamble="You grade how likely a worked solution is to be right.",
)
"""The first rubric: plausible, and after thoroughness rather than success."""

Texts = Sequence[tuple[str, str]]
"""(query, response) pairs."""


class Criteria(NamedTuple):
    """The criteria of a response in standard deviations from their means over a sample.

    Args:
        mean: of each of `CRITERIA` over the sample.
        scale: 1 / standard deviation; 0 for a criterion that does not vary in the sample.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, sample: Texts) -> Criteria:
        """Return the criteria standardised by these responses.

        Raises:
            ValueError: an empty sample.
        """
        if not sample:
            raise ValueError("the criteria need a sample of responses to be standardised by.")
        values = np.array([measure(*texts) for texts in sample])
        deviation = values.std(0)
        scale = np.where(deviation > 1e-9, 1 / np.maximum(deviation, 1e-9), 0.0)
        return cls(values.mean(0), scale)

    def __call__(self, query: str, response: str) -> np.ndarray:
        """Return the values, in the order of `CRITERIA`."""
        values: np.ndarray = (np.array(measure(query, response)) - self.mean) * self.scale
        return values

    def to_dict(self) -> dict[str, list[float]]:
        """Return mean and scale as JSON values."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}


class CriteriaJudge(SimulatedLM):
    """A judge that reads a rubric of `CRITERIA` and adds up what a program can measure.

        score = 1 + 9 sigmoid(sum of weight_c z_c - strictness), rounded to 0.5

    z_c is the standardised criterion. A criterion that it does not know counts nothing; a template
    that is not a rubric gets no score. Asked for a choice, it has the probabilities of
    `metaopt.llm.rubric.graded` at the same sum.

    Args:
        criteria: the standardised criteria.

    Cost: a few microseconds a response after the first time.
    """

    def __init__(self, criteria: Criteria) -> None:
        self.criteria = criteria
        digest = hashlib.sha256(criteria.mean.tobytes() + criteria.scale.tobytes()).hexdigest()
        super().__init__(self._judge, f"criteria-judge-{digest[:12]}", choose=self._probabilities)

    def _judge(self, role: str, messages: Sequence[Message], key: int) -> str:
        logit = self._logit(messages)
        if logit is None:
            return "There are no criteria here that I know."
        score = round_score(LOW + (HIGH - LOW) * float(expit(logit)))
        return f"The criteria add up to {logit:+.2f}.\nScore: {score:.1f}"

    def _probabilities(
        self, role: str, messages: Sequence[Message], choices: Sequence[str], key: int
    ) -> list[float]:
        logit = self._logit(messages)
        return [0.0] * len(choices) if logit is None else graded(logit, len(choices))

    def _logit(self, messages: Sequence[Message]) -> float | None:
        """Return what the criteria add up to; `None` where there is no rubric of them."""
        asked = next(m["content"] for m in messages if m["role"] == "user")
        template, _, question = asked.partition("\n\nObjective: ")
        query, _, response = question.partition("\n\nResponse:\n")
        rubric = read_rubric_numbers(template, tuple(CRITERIA))
        if rubric is None:
            return None
        weights, strictness = rubric
        return float(weights @ self.criteria(query, response)) - strictness


def criteria_judge(sample: Texts) -> CriteriaJudge:
    """Return the judge whose criteria are standardised by (query, response) pairs."""
    return CriteriaJudge(Criteria.of(sample))


class RubricWriter:
    """Rewrites the best rubric it is shown: at random, or towards the responses misjudged.

    A blind step adds 0.5 times standard normal noise to three weights and 0.3 times such noise to
    the strictness. Shown examples, it first moves the weights by 0.1 times the difference between
    the mean criteria of the misjudged successes and failures.

    Args:
        criteria: of the examples.
    """

    def __init__(self, criteria: Criteria) -> None:
        self.criteria = criteria

    def __call__(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Return the answer to `metaopt.problems.template_evolution.prompts.rewriting`."""
        text = messages[-1]["content"]
        rubric = parse(shown_templates(text)[0][0])
        draw = np.random.default_rng(key)
        weights = dict(rubric.weights)
        for name, move in self._towards(shown_examples(text)).items():
            weights[name] = weights.get(name, 0.0) + 0.1 * move
        names = list(weights)
        for name in draw.choice(names, size=min(3, len(names)), replace=False):
            weights[str(name)] += 0.5 * float(draw.standard_normal())
        strictness = rubric.strictness + 0.3 * float(draw.standard_normal())
        return f"<template>\n{Rubric(weights, strictness, rubric.preamble).render()}\n</template>"

    def _towards(self, examples: Sequence[Example]) -> dict[str, float]:
        move = np.zeros(len(CRITERIA))
        for outcome, sign in ((True, 1.0), (False, -1.0)):
            side = [self._criteria(e.response) for e in examples if e.outcome is outcome]
            move += sign * np.mean(side, axis=0) if side else 0.0
        return dict(zip(CRITERIA, move.tolist(), strict=True)) if examples else {}

    def _criteria(self, example: str) -> np.ndarray:
        query, _, response = example.removeprefix("Objective: ").partition("\n\nResponse:\n")
        return self.criteria(query, response)


def logistic_rubric(criteria: Criteria, texts: Texts, outcomes: Sequence[int]) -> Rubric:
    """Return the rubric whose weights are those of a logistic regression on the criteria.

    Under `criteria_judge` with the same sample it scores with the regression's probability, up to
    the rounding of weights and scores: what a rubric of these criteria reaches when its weights
    are fitted rather than searched for. The regression has scikit-learn's default penalty.
    """
    from sklearn.linear_model import LogisticRegression

    values = np.array([criteria(*pair) for pair in texts])
    fitted = LogisticRegression(max_iter=1_000).fit(values, np.asarray(outcomes))
    weights = dict(zip(CRITERIA, fitted.coef_[0].tolist(), strict=True))
    return Rubric(weights, -float(fitted.intercept_[0]), FIRST.preamble)
