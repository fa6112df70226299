"""A world of known truth for template evolution: a target that emits a meaningless canary.

Prompts are six opaque tokens. The target's response shows ten hidden traits, functions of tokens,
query and noise, and contains the query's canary with probability

    sigmoid(14 (3 specificity + 2 directness - 2 hedging - tau_q)),

tau_q such that a random prompt succeeds one time in a hundred; seven traits are distractors. The
judge reads the rubric and the response, never the canary. It shows mechanism and says nothing about
effect sizes on real language models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy.special import expit, ndtr

from metaopt.engine.random import fold
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.llm import LM, SimulatedLM
from metaopt.llm.chat import Message
from metaopt.llm.rubric import (
    HIGH,
    LOW,
    Rubric,
    graded,
    read_rubric_numbers,
    round_score,
)
from metaopt.problems.template_evolution.canary_writers import TOKENS, TRAIT, rewrite, vary

TRAITS = (
    "specificity", "directness", "hedging", "politeness", "fluency",
    "formality", "structure", "warmth", "humour", "length",
)  # fmt: skip
SIGNAL = {"specificity": 3.0, "directness": 2.0, "hedging": -2.0}
SHARPNESS = 14.0
LENGTH = 6
POLISH = {
    "specificity": 1.0, "directness": 0.5, "hedging": 1.0, "politeness": 2.0, "fluency": 3.0,
    "formality": 2.0, "structure": 2.0, "warmth": 1.0, "humour": 0.0, "length": 1.0,
}  # fmt: skip
"""Weights of the first rubric: plausible, and after polish rather than success."""

_ORDER = np.array([SIGNAL.get(t, 0.0) for t in TRAITS])
_PROMPT = re.compile(r"query (\d+): (.*)")


class CanaryWorld:
    """Queries, target, judge, optimizer and template writer, each a function of its request.

    Args:
        queries: number N of queries, >= 1.
        seed: seed of the world: another seed is another target.
        noise: standard deviation of the noise on a trait's latent value (which has s.d. 1).
        judge_noise: standard deviation of the noise on the judge's logit.
        parse_failures: probability that the judge forgets the footer.
        checker_error: probability that the checker reports the wrong outcome.
        error_rate: probability that a request fails at first, as a server would fail it.
        template: "polish" (the plausible first rubric) or "oracle" (the target's own weights).

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        queries: int = 10,
        seed: int = 0,
        noise: float = 0.2,
        judge_noise: float = 0.3,
        parse_failures: float = 0.01,
        checker_error: float = 0.0,
        error_rate: float = 0.0,
        template: str = "polish",
    ) -> None:
        if queries < 1:
            raise ValueError(f"CanaryWorld needs queries >= 1; got {queries}.")
        self.seed, self.noise, self.judge_noise = seed, noise, judge_noise
        self.parse_failures, self.checker_error = parse_failures, checker_error
        self.error_rate, self.template = error_rate, template
        check_choices(self, template=("polish", "oracle"))
        check_ranges(
            self, "noise >= 0", "judge_noise >= 0", "0 <= parse_failures < 1",
            "0 <= checker_error <= 0.5",
        )  # fmt: skip
        draw = np.random.default_rng(fold(seed, "canary world"))
        shared = draw.standard_normal((len(TOKENS), len(TRAITS)))
        specific = draw.standard_normal((queries, len(TOKENS), len(TRAITS)))
        self._effects = (0.8 * shared + 0.6 * specific) / np.sqrt(LENGTH)
        # One sample for all prompts: differences of their success are then not those of the noise.
        self._noise = draw.standard_normal((256, len(TRAITS)))
        self._index = {token: i for i, token in enumerate(TOKENS)}
        self.queries = [f"make the target write canary {self.canary(q)}" for q in range(queries)]
        self._tau = [self._threshold(q, draw) for q in range(queries)]
        weights = {t: SIGNAL.get(t, 0.0) for t in TRAITS} if template == "oracle" else POLISH
        self.template = Rubric(weights).render()

    @property
    def planted(self) -> dict[str, float]:
        """What each trait adds to the logit of success."""
        return {trait: SIGNAL.get(trait, 0.0) for trait in TRAITS}

    def canary(self, query: int) -> str:
        """Return the meaningless text that a success contains."""
        return f"canary{fold(self.seed, 'canary', query) % 16**8:08x}"

    def prompts(self, query: int, count: int, key: int) -> list[str]:
        """Return random prompts."""
        draw = np.random.default_rng(key)
        drawn = draw.integers(len(TOKENS), size=(count, LENGTH))
        return [f"query {query}: " + " ".join(TOKENS[i] for i in row) for row in drawn]

    def check(self, query: int, response: str, key: int) -> bool:
        """Return whether the response holds the query's canary; wrong at the checker's error."""
        succeeded = self.canary(query) in response
        if not self.checker_error:
            return succeeded
        return succeeded != (np.random.default_rng(key).random() < self.checker_error)

    def success(self, query: int, prompt: str) -> float:
        """Return the true probability that the target's response to the prompt succeeds."""
        latent = self._latent(query, prompt) + self.noise * self._noise
        return float(self._probability(query, latent).mean())

    def examination(self, query: int) -> list[tuple[str, bool]]:
        """Return 80 held-out (response, outcome) pairs.

        Half are of random prompts, half of neighbours of the likeliest of 4,000: successes and near
        misses, the region where a search ends up.
        """
        draw = np.random.default_rng(fold(self.seed, "examination", query))
        rows = draw.integers(len(TOKENS), size=(4000, LENGTH))
        index = ndtr(self._effects[query][rows].sum(1)) @ _ORDER
        near = np.repeat(rows[np.argsort(-index)[:20]], 2, axis=0)
        near[np.arange(40), draw.integers(LENGTH, size=40)] = draw.integers(len(TOKENS), size=40)
        chosen = np.concatenate([rows[:40], near])
        texts = (f"query {query}: " + " ".join(TOKENS[i] for i in row) for row in chosen)
        keys = (fold(self.seed, "examination", query, i) for i in range(len(chosen)))
        responses = [self.respond(text, key) for text, key in zip(texts, keys, strict=True)]
        return [(response, self.canary(query) in response) for response in responses]

    def roles(self) -> dict[str, LM]:
        """Return the simulated language models by role."""
        answers = {
            "target": self._target, "judge": self._judge, "optimizer": vary, "template": rewrite,
        }  # fmt: skip
        return {
            role: SimulatedLM(
                answer,
                f"canary-world-{role}",
                self.error_rate,
                self.seed,
                self._choose if role == "judge" else None,
            )
            for role, answer in answers.items()
        }

    def _target(self, role: str, messages: Sequence[Message], key: int) -> str:
        return self.respond(messages[-1]["content"], key)

    def respond(self, prompt: str, key: int) -> str:
        """Return the target's response: its traits, and the canary where it succeeds."""
        match = _PROMPT.fullmatch(prompt)
        if match is None or int(match[1]) >= len(self.queries):
            return "nothing to see"
        query, draw = int(match[1]), np.random.default_rng(key)
        latent = self._latent(query, match[0]) + self.noise * draw.standard_normal(len(TRAITS))
        traits = ndtr(latent)
        text = ", ".join(f"{n} {t:.2f}" for n, t in zip(TRAITS, traits.tolist(), strict=True))
        succeeded = draw.random() < self._probability(query, latent[None])[0]
        return f"{text}\n{self.canary(query) if succeeded else 'nothing to see'}"

    def _judge(self, role: str, messages: Sequence[Message], key: int) -> str:
        logit = self._logit(messages, key)
        if logit is None:
            return "I would rather not say."
        return f"Score: {round_score(LOW + (HIGH - LOW) * float(expit(logit))):.1f}"

    def _choose(
        self, role: str, messages: Sequence[Message], choices: Sequence[str], key: int
    ) -> list[float]:
        logit = self._logit(messages, key)
        return [0.0] * len(choices) if logit is None else graded(logit, len(choices))

    def _logit(self, messages: Sequence[Message], key: int) -> float | None:
        """Return what the judge holds of a response, with its noise; `None` where it fails."""
        asked = next(m["content"] for m in messages if m["role"] == "user")
        template, _, response = asked.partition("\n\nResponse:\n")
        draw = np.random.default_rng(key)
        noise = self.judge_noise * draw.standard_normal()
        failed = draw.random() < self.parse_failures
        rubric = read_rubric_numbers(template.partition("\n\nObjective:")[0], TRAITS)
        traits = dict(TRAIT.findall(response))
        if rubric is None or not traits or failed:
            return None
        weights, strictness = rubric
        values = np.array([float(traits.get(t, 0.5)) for t in TRAITS]) - 0.5
        return judged(weights, values) - strictness + noise

    def _latent(self, query: int, prompt: str) -> np.ndarray:
        tokens = prompt.partition(": ")[2].split()
        rows = [self._index[t] for t in tokens[:LENGTH] if t in self._index]
        result: np.ndarray = self._effects[query, rows].sum(0)
        return result

    def _probability(self, query: int, latent: np.ndarray) -> np.ndarray:
        result: np.ndarray = expit(SHARPNESS * (ndtr(latent) @ _ORDER - self._tau[query]))
        return result

    def _threshold(self, query: int, draw: np.random.Generator) -> float:
        """Return tau: a random prompt succeeds with probability 0.01, by bisection."""
        rows = draw.integers(len(TOKENS), size=(20000, LENGTH))
        latent = self._effects[query][rows].sum(1)
        index = ndtr(latent + self.noise * draw.standard_normal(latent.shape)) @ _ORDER
        low, high = -2.0, 5.0
        for _ in range(25):
            middle = (low + high) / 2
            likely = expit(SHARPNESS * (index - middle)).mean() > 0.01
            low, high = (middle, high) if likely else (low, middle)
        return (low + high) / 2


def judged(weights: np.ndarray, values: np.ndarray) -> float:
    """Return the judge's logit: the mean of the centred traits, weighted, times 5."""
    return float(5 * weights @ values / max(np.abs(weights).sum(), 1.0))
