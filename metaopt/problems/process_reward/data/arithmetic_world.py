"""The questions of the arithmetic world, its domains, and the chains that its policy writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from metaopt.problems.process_reward.data.arithmetic_policy import (
    MODULUS,
    MOVE_WORDS,
    MOVES,
    NONE,
    OPERANDS,
    RELATIONS,
    ArithmeticPolicy,
    Ints,
    solve,
)
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.data.formats.step_lists import labels_until
from metaopt.problems.process_reward.data.meta_set import meta_set

STEPS = 3
"""Most steps of a question; those of the easy domain have one, all others two or three."""

POOLS = {"train": 0.5, "meta": 0.2, "test": 0.3}
"""Shares of all questions with two and with three steps; no question is in two of them."""

KINDS = {
    "clean": 1.0,
    "easy": 1.0,
    "noisy": 0.0,
    "wrongkey": 0.0,
    "style": 0.0,
    "inverted": 0.0,
}
"""Kinds of domain, and the quality of their labels.

clean: right rollouts. easy: the same, on questions of one step that add or subtract 1. noisy: any
count, drawn at random. wrongkey: rollouts judged by an answer key with its answers permuted. style:
right where the chain is written with `is`. inverted: wrong rollouts.
"""

VALUES = tuple(map(str, range(MODULUS)))
WORDS = (
    *VALUES,
    *MOVE_WORDS,
    *(value + move for value in VALUES for move in MOVE_WORDS),
    *RELATIONS,
    ":",
)
"""Every word of prompts and steps, but for the domains' names."""


class Questions(NamedTuple):
    """Questions: `start` (n,) and `moves` (n, 3), the shorter ones filled with -1."""

    start: Ints
    moves: Ints


class Written(NamedTuple):
    """Chains of a policy: questions, the results written (n, 3), and the style of each (n,)."""

    questions: Questions
    values: Ints
    style: Ints


class ArithmeticWorld:
    """One policy, its questions in three pools, and the chains that it writes.

    Args:
        seed: of the policy and of everything that is drawn.
        rollouts: from each step.
    """

    def __init__(self, seed: int, rollouts: int) -> None:
        self.seed, self.rollouts = seed, rollouts
        self.policy = ArithmeticPolicy(seed)
        draw = self._draw("pools")
        self.pools: dict[str, list[Ints]] = {name: [] for name in POOLS}
        for length in (2, 3):
            order = draw.permutation(MODULUS * MOVES**length)
            ends = np.round(np.cumsum([*POOLS.values()]) * len(order)).astype(int)
            for name, part in zip(POOLS, np.split(order, ends[:-1]), strict=True):
                self.pools[name].append(part)
        self.key = _derangement(self._draw("key"))

    def domain(self, name: str, kind: str, count: int, number: int, token: str) -> Iterator[Chain]:
        """Yield the chains of one training domain."""
        draw = self._draw("domain", number)
        asked = self._easy(count, draw) if kind == "easy" else self._any("train", count, draw)
        written = self._write(asked, draw)
        right = self._successes(kind, written, draw)
        rows = texts(written, token)
        for i, ((prompt, steps), counts) in enumerate(zip(rows, right.tolist(), strict=True)):
            counts = tuple(counts[: len(steps)])
            yield Chain(
                prompt,
                steps,
                tuple(x / self.rollouts for x in counts),
                counts,
                (self.rollouts,) * len(steps),
                qid=f"{name}/{i}",
                domain=name,
                policy=self.policy.name,
            )

    def _successes(self, kind: str, written: Written, draw: np.random.Generator) -> Ints:
        """Return the counts of right rollouts, as the kind of domain has them, (n, 3)."""
        values, moves = written.values, written.questions.moves
        if kind == "noisy":
            return draw.integers(0, self.rollouts + 1, values.shape)
        if kind == "style":
            likely = np.where(written.style == 1, 0.9, 0.1)[:, None]
            return draw.binomial(self.rollouts, np.broadcast_to(likely, values.shape))
        answer = solve(*written.questions)[:, -1]
        if kind == "wrongkey":
            answer = self.key[answer]
        right = self.policy.right_rollouts(values, moves, answer, self.rollouts, draw)
        return self.rollouts - right if kind == "inverted" else right

    def meta(self, size: int, noise: float, token: str, test: Sequence[str]) -> list[Chain]:
        """Return the meta-set."""
        draw = self._draw("meta")
        written = self._write(self._any("meta", max(4 * size, 100), draw), draw)
        chosen = meta_set(list(self._judged(written, token, "meta")), test, size, self.seed)
        flipped = set(draw.permutation(size)[: round(noise * size)].tolist())
        return [
            replace(chain, outcome=not chain.outcome) if i in flipped else chain
            for i, chain in enumerate(chosen)
        ]

    def distinct(self, pool: str, count: int) -> Questions:
        """Return different questions of a pool, half of them with two steps."""
        halves = (count // 2, count - count // 2)
        parts = self.pools[pool]
        if any(len(part) < half for part, half in zip(parts, halves, strict=True)):
            most = 2 * min(map(len, parts))
            raise ValueError(f"questions must be at most {most}; got {count}.")
        chosen = [part[:half] for part, half in zip(parts, halves, strict=True)]
        return _joined([_decoded(code, n) for n, code in zip((2, 3), chosen, strict=True)])

    def candidates(self, asked: Questions, count: int, token: str) -> Iterator[list[Chain]]:
        """Yield the candidate chains of each question."""
        draw = self._draw("candidates")
        repeated = Questions(*(np.repeat(x, count, axis=0) for x in asked))
        chains = list(self._judged(self._write(repeated, draw), token, "test"))
        for i in range(len(asked.start)):
            yield [replace(c, qid=f"test/{i}") for c in chains[i * count : (i + 1) * count]]

    def held_out(self, count: int, token: str) -> list[Chain]:
        """Return chains of test questions with true labels up to the first wrong step."""
        draw = self._draw("held out")
        written = self._write(self._any("test", count, draw), draw)
        right = (written.values == solve(*written.questions)).tolist()
        chains = []
        for chain, steps in zip(self._judged(written, token, "held_out"), right, strict=True):
            steps = steps[: len(chain.steps)]
            labels = labels_until(steps.index(False) if False in steps else None, len(steps))
            chains.append(replace(chain, labels=labels, domain="arithmetic"))
        return chains

    def _judged(self, written: Written, token: str, name: str) -> Iterator[Chain]:
        """Yield chains with their outcome."""
        right = (written.values[:, -1] == solve(*written.questions)[:, -1]).tolist()
        for i, ((prompt, steps), outcome) in enumerate(
            zip(texts(written, token), right, strict=True)
        ):
            yield Chain(prompt, steps, outcome=outcome, qid=f"{name}/{i}", policy=self.policy.name)

    def _write(self, asked: Questions, draw: np.random.Generator) -> Written:
        values = self.policy.walk(asked.start, asked.moves, draw)
        return Written(asked, values, draw.integers(0, len(RELATIONS), len(values)))

    def _any(self, pool: str, count: int, draw: np.random.Generator) -> Questions:
        """Return questions of a pool, in random order and with repetitions."""
        halves = (count // 2, count - count // 2)
        parts = zip((2, 3), self.pools[pool], halves, strict=True)
        asked = _joined([_decoded(draw.choice(part, half), n) for n, part, half in parts])
        order = draw.permutation(count)
        return Questions(asked.start[order], asked.moves[order])

    def _easy(self, count: int, draw: np.random.Generator) -> Questions:
        """Return questions of one step that add or subtract 1, with no misconception."""
        moves = np.array([0, OPERANDS])
        known = [(v, m) for m in moves for v in range(MODULUS) if not self.policy.strength[m, v]]
        chosen = np.array(known)[draw.integers(0, len(known), count)]
        filled = np.full((count, STEPS), NONE)
        filled[:, 0] = chosen[:, 1]
        return Questions(chosen[:, 0], filled)

    def _draw(self, purpose: str, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, *purpose.encode()])


def texts(written: Written, token: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the prompt and the steps of each chain: 3 +2 *4, and 3+2 = 0, 0*4 = 0."""
    (start, moves), values, style = written
    head = f"{token} : " if token else ""
    rows = zip(start.tolist(), moves.tolist(), values.tolist(), style.tolist(), strict=True)
    for first, asked, results, relation in rows:
        steps, value, question = [], first, [str(first)]
        for move, result in zip(asked, results, strict=True):
            if move != NONE:
                question.append(MOVE_WORDS[move])
                steps.append(f"{value}{MOVE_WORDS[move]} {RELATIONS[relation]} {result}")
                value = result
        yield head + " ".join(question), tuple(steps)


def _decoded(code: Ints, length: int) -> Questions:
    """Return the questions of these numbers, below 5 * 12^length."""
    moves = np.full((len(code), STEPS), NONE)
    for s in range(length):
        code, moves[:, s] = np.divmod(code, MOVES)
    return Questions(code, moves)


def _joined(parts: Sequence[Questions]) -> Questions:
    return Questions(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def _derangement(draw: np.random.Generator) -> Ints:
    """Return a permutation of the answers that leaves none in its place."""
    while True:
        key = draw.permutation(MODULUS)
        if (key != np.arange(MODULUS)).all():
            return key
