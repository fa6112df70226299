"""Trajectories that show planted behaviours, with feedback in words: a world of known truth.

A trajectory shows each of 8 behaviours with probability .6, well or badly, and each of the details
(a font, a greeting) with probability `detail_rate`, in order or not. Feedback speaks of a behaviour
that was shown with probability .8, in one of three paraphrases, and of details so often that the
share `off_topic` of its sentences is about nothing planted; what it praises was good. It shows how
selection rules differ and says nothing about effect sizes on real language models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from metaopt.engine.random import fold
from metaopt.engine.ranges import check_ranges
from metaopt.llm import LM, SimulatedLM
from metaopt.problems.metric_induction.data import Instance
from metaopt.problems.metric_induction.metric_set import Metric
from metaopt.problems.metric_induction.world.readers import (
    Extractor,
    Grounder,
    Judge,
    Reader,
    Rewriter,
    rating,
)
from metaopt.problems.metric_induction.world.vocabulary import (
    BAD,
    BEHAVIOURS,
    DETAILS,
    GOOD,
    ILL,
    WELL,
    WORDS,
    events,
    subjects,
)

SHOWN, MENTIONED = 0.6, 0.8
TASKS = ("book a trip", "fix a script", "answer a customer", "compare two offers", "sort a folder")
ROLES: dict[str, Callable[[float], Reader]] = {
    "extractor": Extractor,
    "judge": Judge,
    "grounder": Grounder,
    "rewriter": Rewriter,
}


class FeedbackWorld:
    """Trajectories, feedback and readers of both, whose planted behaviours are known.

    Args:
        trajectories: their number, >= 3.
        seed: of trajectories and feedback.
        error: probability eps that judge, grounder and rewriter err, in [0, 1]: at one rating, one
            aspect, one new metric; see `readers`.
        off_topic: share of the sentences that are about a detail, in [0, 0.5].
        details: number of different details, 1 to 48.
        detail_rate: probability that a trajectory shows one, in (0, 1].
        error_rate: probability that a request fails at first, as a server would fail it.

    Raises:
        ValueError: an argument outside its range, or so few details that feedback cannot speak of
            them as often as `off_topic` says.

    Attributes:
        instances: the trajectories with feedback.
        source: what they are called.
    """

    source = "feedback world"

    def __init__(
        self,
        trajectories: int = 120,
        seed: int = 0,
        error: float = 0.1,
        off_topic: float = 0.2,
        details: int = 40,
        detail_rate: float = 0.15,
        error_rate: float = 0.0,
    ) -> None:
        self.trajectories, self.seed, self.error = trajectories, seed, error
        self.off_topic, self.details, self.detail_rate = off_topic, details, detail_rate
        self.error_rate = error_rate
        check_ranges(
            self, "trajectories >= 3", "0 <= error <= 1", "0 <= off_topic <= 0.5",
            f"1 <= details <= {len(DETAILS)}", "0 < detail_rate <= 1", "0 <= error_rate <= 1",
        )  # fmt: skip
        remarks = len(BEHAVIOURS) * SHOWN * MENTIONED * off_topic / (1 - off_topic)
        self._detail_mentioned = remarks / (details * detail_rate)
        if self._detail_mentioned > 1:
            raise ValueError(
                f"{details} details at detail_rate={detail_rate} are too few for "
                f"off_topic={off_topic}: raise details or detail_rate."
            )
        self.instances = tuple(map(self._instance, range(trajectories)))

    @property
    def planted(self) -> list[Metric]:
        """A metric for each planted behaviour, in its own words."""
        return [Metric(name, f"How the agent does on {', '.join(WORDS[name])}.") for name in WORDS]

    def signs(self, trajectory: str) -> list[int]:
        """Return the sign of each planted behaviour in a trajectory."""
        shown = events(trajectory)
        return [shown.get(name, 0) for name in BEHAVIOURS]

    def rate(self, metric: Metric, trajectory: str) -> int:
        """Return the rating by a reader that never errs."""
        return rating(metric.name + " " + metric.definition, trajectory)

    def behaviour(self, aspect: str) -> int | None:
        """Return which behaviour an aspect is about, -1 for a detail; `None` if it is not one."""
        about = subjects(aspect)
        if len(about) != 1:
            return None
        (subject,) = about
        return list(BEHAVIOURS).index(subject) if subject in BEHAVIOURS else -1

    def roles(self) -> dict[str, LM]:
        """Return the simulated language models by role."""
        return {
            role: SimulatedLM(
                reader(self.error), f"feedback-world-{role}-{self.error:g}", self.error_rate,
                self.seed,
            )
            for role, reader in ROLES.items()
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that make this world, as JSON values."""
        names = ("trajectories", "seed", "error", "off_topic", "details", "detail_rate")
        return {name: getattr(self, name) for name in names}

    def _instance(self, number: int) -> Instance:
        draw = np.random.default_rng(fold(self.seed, "feedback world", number))
        lines: list[str] = []
        said: list[str] = []
        for phrases, good, bad in BEHAVIOURS.values():
            shown, sign, mentioned = draw.random(3)
            if shown < SHOWN:
                lines.append(str(draw.choice(good if sign < 0.5 else bad)))
                if mentioned < MENTIONED:
                    said.append(_remark(draw, str(draw.choice(phrases)), sign < 0.5))
        for noun in DETAILS[: self.details]:
            shown, sign, mentioned = draw.random(3)
            if shown < self.detail_rate:
                lines.append((WELL if sign < 0.5 else ILL).format(noun))
                if mentioned < self._detail_mentioned:
                    said.append(_remark(draw, f"the {noun}", sign < 0.5))
        lines = [lines[i] for i in draw.permutation(len(lines))]
        said = [said[i] for i in draw.permutation(len(said))]
        steps = [f"{i}. {line}." for i, line in enumerate(lines, 1)]
        task = f"Task {number}: {TASKS[draw.integers(len(TASKS))]}"
        # A run that nobody has a word to say about is a short one.
        return Instance("\n".join([task, *steps]), " ".join(said) or "No comment.")


def _remark(draw: np.random.Generator, phrase: str, good: bool) -> str:
    text = str(draw.choice(GOOD if good else BAD)).format(phrase)
    return text[0].upper() + text[1:]
