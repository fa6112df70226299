"""A controlled world for process reward models, in which every domain's quality is known.

Chained arithmetic modulo 5. The policy that answers the questions has misconceptions, so a step's
label is how often the same policy gets from there to the right answer, counted on rollouts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from metaopt.data.arithmetic_policy import (
    MODULUS,
    MOVES,
    NONE,
    OPERANDS,
    OPERATIONS,
    RELATIONS,
    ArithmeticPolicy,
    Ints,
    solve,
)
from metaopt.data.process_supervision import Chain, meta_set
from metaopt.data.process_task import ProcessData

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

DOMAINS = ("clean", "clean", "clean", "easy", "noisy", "wrongkey", "style", "inverted")
WORDS = (*map(str, range(MODULUS)), *OPERATIONS, *RELATIONS, ":")
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


def arithmetic(
    domains: Sequence[str] = DOMAINS,
    chains: int = 3_000,
    meta_size: int = 500,
    meta_noise: float = 0.0,
    questions: int = 300,
    candidates: int = 64,
    held_out: int = 1_000,
    rollouts: int = 8,
    domain_token: bool = False,
    seed: int = 0,
) -> ProcessData:
    """Return domains of known quality, a meta-set and test questions of the arithmetic world.

    Training, meta-set and test ask different questions; only the policy is shared. In each, half
    of the questions have two steps and half have three.

    Args:
        domains: kind of each training domain (see `KINDS`); a kind that comes more than once is
            numbered: clean_1, clean_2, ...
        chains: of each domain.
        meta_size: chains of the meta-set, half of them right and half wrong.
        meta_noise: share in [0, 1] of the meta-set whose outcome is flipped.
        questions: test questions, all different.
        candidates: chains of each test question.
        held_out: chains of test questions with true step labels.
        rollouts: from each step.
        domain_token: start each prompt with the name of its domain. The meta-set and the test
            carry that of the first clean domain, so this row knows one that can be trusted.
        seed: of the policy's misconceptions and of everything that is drawn.

    Raises:
        ValueError: an argument out of its range, or an unknown kind of domain.

    Cost: about two seconds for the default.
    """
    _check(domains, chains, meta_size, meta_noise, questions, candidates, held_out, rollouts)
    names = named(domains)
    if domain_token and "clean" not in domains:
        raise ValueError("domain_token needs a clean domain, whose name the test carries.")
    trusted = next((n for n, k in zip(names, domains, strict=True) if k == "clean"), "")
    token = trusted if domain_token else ""
    world = World(seed, rollouts)
    train = [
        chain
        for number, (name, kind) in enumerate(zip(names, domains, strict=True))
        for chain in world.domain(name, kind, chains, number, name if domain_token else "")
    ]
    asked = world.distinct("test", questions)
    tests = list(world.candidates(asked, candidates, token))
    return ProcessData(
        train=train,
        meta=world.meta(meta_size, meta_noise, token, [row[0].prompt for row in tests]),
        candidates=tests,
        held_out={"arithmetic": world.held_out(held_out, token)} if held_out else {},
        quality=_quality(names, domains),
        answers=[[chain.steps[-1][-1] for chain in row] for row in tests],
    )


def named(domains: Sequence[str]) -> tuple[str, ...]:
    """Return the names of domains of these kinds."""
    count, seen = Counter(domains), Counter[str]()
    names = []
    for kind in domains:
        seen[kind] += 1
        names.append(f"{kind}_{seen[kind]}" if count[kind] > 1 else kind)
    return tuple(names)


def _quality(names: Sequence[str], kinds: Sequence[str]) -> dict[str, float] | None:
    quality = {name: KINDS[kind] for name, kind in zip(names, kinds, strict=True)}
    return quality if any(quality.values()) else None


class World:
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
        found = list(self._judged(self._write(repeated, draw), token, "test"))
        for i in range(len(asked.start)):
            one = found[i * count : (i + 1) * count]
            yield [replace(chain, qid=f"test/{i}") for chain in one]

    def held_out(self, count: int, token: str) -> list[Chain]:
        """Return chains of test questions with true labels up to the first wrong step."""
        draw = self._draw("held out")
        written = self._write(self._any("test", count, draw), draw)
        right = (written.values == solve(*written.questions)).tolist()
        found = []
        for chain, steps in zip(self._judged(written, token, "held_out"), right, strict=True):
            steps = steps[: len(chain.steps)]
            end = steps.index(False) if False in steps else len(steps)
            labels = tuple(1.0 if s < end else 0.0 if s == end else None for s in range(len(steps)))
            found.append(replace(chain, labels=labels, domain="arithmetic"))
        return found

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
    """Yield the prompt and the steps of each chain."""
    (start, moves), values, style = written
    head = f"{token} : " if token else ""
    said = [f"{OPERATIONS[m // OPERANDS]} {m % OPERANDS + 1}" for m in range(MOVES)]
    rows = zip(start.tolist(), moves.tolist(), values.tolist(), style.tolist(), strict=True)
    for first, asked, results, relation in rows:
        steps, value, question = [], first, [str(first)]
        for move, result in zip(asked, results, strict=True):
            if move != NONE:
                question.append(said[move])
                steps.append(f"{value} {said[move]} {RELATIONS[relation]} {result}")
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


def _check(
    domains: Sequence[str],
    chains: int,
    meta_size: int,
    meta_noise: float,
    questions: int,
    candidates: int,
    held_out: int,
    rollouts: int,
) -> None:
    unknown = sorted(set(domains) - set(KINDS))
    if unknown or not domains:
        raise ValueError(f"domains must be of {', '.join(KINDS)}; got {', '.join(unknown)}.")
    least = {
        "chains": (chains, 1),
        "meta_size": (meta_size, 2),
        "questions": (questions, 2),
        "candidates": (candidates, 1),
        "held_out": (held_out, 0),
        "rollouts": (rollouts, 1),
    }
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ValueError(f"{name} must be >= {lowest}; got {value}.")
    if meta_size % 2:
        raise ValueError(f"meta_size must be even, half right and half wrong; got {meta_size}.")
    if not 0 <= meta_noise <= 1:
        raise ValueError(f"meta_noise must be in [0, 1]; got {meta_noise}.")
