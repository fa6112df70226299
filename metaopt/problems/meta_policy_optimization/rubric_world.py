"""A world of known truth: responses are sets of features, and a judge that some of them fool.

A response has 6 qualities, 3 abuses and 4 neutral features or not: 2^13 = 8,192 responses x. Its
true quality is U = w . x, with w ~ U(.6, 1.4) for a quality, -U(1.2, 2.2) for an abuse and 0 for
the rest. For each of the queries the first policy is a product of Bernoullis, of rates U(.25, .5),
U(.01, .04) and U(.3, .7), whose logits have N(0, .5) added.

The judge reads item f as x_f, or-ed with every abuse that fools it (each pair with probability .5),
and flipped for a fixed 10 % of the responses. The vague first item is
round(1.5 + two of the qualities + 1.2 per abuse + N(0, .5)) in 0..5, so abuse pays. The effect is
built in: it shows mechanism and says nothing about effect sizes on real language models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from metaopt.engine.random import fold
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.llm import LM, SimulatedLM
from metaopt.llm.chat import Message
from metaopt.problems.meta_policy_optimization.item_scores import (
    read_weights,
    render,
    render_scores,
)
from metaopt.problems.meta_policy_optimization.policy import Examination
from metaopt.problems.meta_policy_optimization.prompts import judged
from metaopt.problems.meta_policy_optimization.simulated_meta_judge import (
    QUALITY_POINTS,
    SimulatedMetaJudge,
)
from metaopt.problems.meta_policy_optimization.vocabulary import (
    ABUSES,
    CRITERIA,
    FEATURES,
    NEUTRAL,
    OVERALL,
    QUALITIES,
    describe,
    features,
)

FIRST = ("vague", "expert", "oracle")
MIXTURE_QUERIES, MIXTURE_EACH = 24, 32
_KINDS = (QUALITIES, ABUSES, NEUTRAL)
_ABUSE = slice(len(QUALITIES), len(QUALITIES) + len(ABUSES))


class RubricWorld:
    """Queries, responses of known quality, a judge that abuse fools, and a meta judge.

    Args:
        queries: number of queries that the policy is trained on, >= 1.
        seed: of the world: qualities, rates, what fools the judge.
        error: probability eps that one analysis of the meta judge is wrong.
        first: rubric that a run starts from: "vague" (one item), "expert" (all true qualities, no
            deductions) or "oracle" (the true weights).
        flips: share of responses for which the judge misreads an item, in [0, 0.5].
        error_rate: probability that a request fails at first, as a server would fail it.

    Raises:
        ValueError: an argument outside its range.

    Attributes:
        quality: U of every response, (8192,).
        abuse_rate: share of the three abuses that every response shows, (8192,).
        readings: what share of each of `CRITERIA` the judge gives every response, (8192, 14).
        log_prior: logarithms of the first policy's probabilities, (queries, 8192).
        rubric: the first rubric.
    """

    criteria = CRITERIA

    def __init__(
        self,
        queries: int = 4,
        seed: int = 0,
        error: float = 0.2,
        first: str = "vague",
        flips: float = 0.1,
        error_rate: float = 0.0,
    ) -> None:
        self.queries = [f"query {i}" for i in range(queries)]
        self.count, self.seed, self.error = queries, seed, error
        self.first, self.flips, self.error_rate = first, flips, error_rate
        check_choices(self, first=FIRST)
        if queries < 1:
            raise ValueError(f"RubricWorld needs queries >= 1; got queries={queries}.")
        check_ranges(self, "0 <= error <= 1", "0 <= flips <= 0.5", "0 <= error_rate <= 1")
        bits = np.arange(2 ** len(FEATURES))[:, None] >> np.arange(len(FEATURES)) & 1
        self.features: np.ndarray = bits.astype(bool)
        draw = np.random.default_rng(fold(seed, "rubric world"))
        self.weights = _by_kind(draw, (0.6, 1.4), (-2.2, -1.2), (0.0, 0.0))
        self._rates = _by_kind(draw, (0.25, 0.5), (0.01, 0.04), (0.3, 0.7))
        # Each query has draws of its own, so that more queries leave these as they are.
        self.log_prior = torch.from_numpy(self._log_prior("query", queries))
        self._fooled = draw.random((len(FEATURES), len(ABUSES))) < 0.5
        self._flipped = draw.random(self.features.shape) < flips
        self._noticed = draw.choice(len(QUALITIES), 2, replace=False)
        self._noise = 0.5 * draw.standard_normal(len(self.features))
        self.quality = torch.from_numpy(self.features @ self.weights)
        self.abuse_rate = torch.from_numpy(self.features[:, _ABUSE].mean(1))
        self.rubric = render(self._first_weights())

    @cached_property
    def readings(self) -> np.ndarray:
        """The judge's reading of every criterion of every response, in [0, 1]."""
        abuses = self.features[:, _ABUSE]
        fooled = (abuses[:, None] & self._fooled).any(2)
        items = (self.features | fooled) ^ self._flipped
        level = 1.5 + self.features[:, self._noticed].sum(1) + 1.2 * abuses.sum(1) + self._noise
        overall = np.clip(np.round(level), 0, 5) / 5
        return np.column_stack([items, overall])

    def points(self, rubric: str) -> np.ndarray:
        """Return the sum of the items' points of every response under a rubric, (8192,).

        It is what the judge of `roles` states, for all responses at once. An item that is none of
        `CRITERIA`, as a language model may write one, has no points: no response shows it.
        """
        known = {name: w for name, w in read_weights(rubric).items() if name in CRITERIA}
        columns = [CRITERIA.index(name) for name in known]
        points: np.ndarray = self.readings[:, columns] @ np.array(list(known.values()))
        return points

    @property
    def planted(self) -> dict[str, float]:
        """What each feature adds to the true quality."""
        return dict(zip(FEATURES, self.weights.tolist(), strict=True))

    def response(self, index: int) -> str:
        """Return the text of a response."""
        return describe(name for i, name in enumerate(FEATURES) if index >> i & 1)

    def true_quality(self, query: str, response: str) -> float:
        """Return U of a response, whatever the query.

        Raises:
            ValueError: the text is no response of this world.
        """
        index = self.index(response)
        if index is None:
            raise ValueError(f"{response[:80]!r} is not a response of this world.")
        return float(self.quality[index])

    def index(self, response: str) -> int | None:
        """Return which response a text is; `None` where it is none of this world's."""
        shown = features(response)
        return None if shown is None else sum(1 << FEATURES.index(name) for name in shown)

    @cached_property
    def mixture(self) -> tuple[np.ndarray, np.ndarray]:
        """Queries and responses that measure a rubric, (768,) each: a fixed sample of this world.

        24 queries that no policy is trained on have 32 responses each: half of the first policy,
        half of it with one to three abuses on top. Responses of a trained policy are all alike, so
        that on them the best rubric agrees with the truth no better than another.
        """
        draw = np.random.default_rng(fold(self.seed, "mixture"))
        prior = np.exp(self._log_prior("held out", MIXTURE_QUERIES))
        drawn = [draw.choice(len(p), MIXTURE_EACH, p=p / p.sum()) for p in prior]
        responses = np.stack(drawn)
        half = MIXTURE_EACH // 2
        abuses = 1 + draw.integers(2 ** len(ABUSES) - 1, size=(MIXTURE_QUERIES, half))
        responses[:, half:] |= abuses << len(QUALITIES)
        return np.repeat(np.arange(MIXTURE_QUERIES), MIXTURE_EACH), responses.ravel()

    def examine(self, rubric: str) -> Examination:
        """Return the mixture with the judge's points."""
        queries, responses = self.mixture
        points, truth = self.points(rubric)[responses], self.quality[responses]
        return Examination(queries.tolist(), points.tolist(), truth.tolist())

    def roles(self) -> dict[str, LM]:
        """Return the simulated language models by role."""
        meta = SimulatedMetaJudge(self.error)
        return {
            "judge": SimulatedLM(self._judge, "rubric-world-judge", self.error_rate, self.seed),
            "meta": SimulatedLM(
                meta, f"rubric-world-meta-{self.error:g}", self.error_rate, self.seed
            ),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that make this world, as JSON values."""
        return {
            "queries": self.count, "seed": self.seed, "error": self.error, "first": self.first,
            "flips": self.flips,
        }  # fmt: skip

    def _judge(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Read rubric and response as texts, and state the points of each item."""
        rubric, _, response = judged(messages[-1]["content"])
        index = self.index(response)
        try:
            weights = read_weights(rubric)
        except ValueError:
            return "There is no rubric here."
        if index is None:
            return "I cannot judge this response."
        readings = dict(zip(CRITERIA, self.readings[index], strict=True))
        return render_scores({name: w * readings.get(name, 0.0) for name, w in weights.items()})

    def _first_weights(self) -> Mapping[str, float]:
        if self.first == "vague":
            return {OVERALL: 5.0}
        if self.first == "expert":
            return dict.fromkeys(QUALITIES, QUALITY_POINTS)
        return self.planted

    def _log_prior(self, name: str, count: int) -> np.ndarray:
        logits = np.log(self._rates / (1 - self._rates))
        rows = []
        for query in range(count):
            draw = np.random.default_rng(fold(self.seed, name, query))
            z = logits + 0.5 * draw.standard_normal(len(logits))
            rows.append(self.features @ z - np.logaddexp(0, z).sum())
        return np.stack(rows)


def _by_kind(draw: np.random.Generator, *ranges: tuple[float, float]) -> np.ndarray:
    """Return a number for each feature, uniform in the range of its kind."""
    return np.concatenate(
        [draw.uniform(*ends, len(kind)) for ends, kind in zip(ranges, _KINDS, strict=True)]
    )
