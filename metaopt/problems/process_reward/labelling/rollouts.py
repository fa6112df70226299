"""Monte-Carlo step labels: how often a policy gets from a step to the right answer.

The label of a step is the share of completions of the chain up to it that end right (Wang et al.,
ACL 2024). Rollouts go where they tell something: a step that has only right or only wrong ones
after `minimum` of them is decided, the others get `maximum`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from metaopt.data.final_answers import agree, final_answer
from metaopt.files.lock import locked
from metaopt.files.reading import damaged, read_bytes, read_json
from metaopt.files.writing import write_json, write_text
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.data.formats.chain import from_chain, refuse, to_chain

SETTINGS = "labelling.settings"
"""File of a folder of shards that says what was asked for."""


class Policy(Protocol):
    """Completes solutions.

    Attributes:
        name: names the policy and whatever else decides its completions, but no credentials.
    """

    name: str

    def complete(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        draw: np.random.Generator,
    ) -> Sequence[str | None]:
        """Return for each question and its first steps the rest of a solution.

        Args:
            prompts: the questions.
            prefixes: of each question the steps that are written; the last may be all there is.
            draw: source of all randomness; another state gives independent completions.

        Returns:
            The rest, "" where nothing is missing, and `None` where there is no completion (a
            failure, or one that was cut off): it is not counted.
        """
        ...


class Judge(Protocol):
    """Decides about answers that rules cannot decide.

    Attributes:
        name: names the judge and whatever else decides its verdicts, but no credentials.
    """

    name: str

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> Sequence[bool | None]:
        """Return whether each answer is right; `None`, not counted, where that stays open."""
        ...


def label_steps(
    chains: Sequence[Chain],
    references: Sequence[str],
    policy: Policy,
    folder: str | Path,
    judge: Judge | None = None,
    minimum: int = 4,
    maximum: int = 8,
    batch: int = 64,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Chain]:
    """Return the chains with counts of right rollouts and labels, and write them to a folder.

    Each batch of chains is a shard, 00000.jsonl and so on, written when it is done. Called again
    after it was killed, it goes on with the shards that are missing, and since a rollout's
    randomness is a function of seed, shard and turn, the files are those of an uninterrupted run.
    Counts that chains bring along are added to; labels of steps without any rollout are unknown.

    The final answer is judged by rules (`final_answers.agree`), then by the judge if there is one;
    without one, what rules cannot decide is wrong. Stopping early favours the likelier side: with
    success probability p a label's mean is off by (1 - m/M) p q (p^(m-1) - q^(m-1)), with
    q = 1 - p, m the minimum and M the maximum (0.04 at most for 4 and 8).

    Args:
        chains: their steps are labelled; their own outcome is not used.
        references: the right answer of each.
        policy: writes the rollouts.
        folder: of the shards; it is made where it is missing.
        judge: decides what rules cannot, or `None`.
        minimum: rollouts of each step.
        maximum: rollouts of a step whose rollouts are neither all right nor all wrong.
        batch: chains of a shard.
        seed: another seed is other rollouts.
        progress: called with the number of chains that are done, after each shard.

    Raises:
        ValueError: an argument out of its range; chains without steps; a folder that holds
            shards of other chains or settings, which are named, or that another process writes
            to; or no label of any step in the first shard, which is then not written.

    Cost: minimum to maximum completions a step, in at most `maximum` calls of the policy a shard.
    """
    chains = list(chains)
    check_counts(minimum, maximum, batch)
    if len(references) != len(chains):
        raise ValueError(
            f"references must be one per chain; got {len(references)} for {len(chains)} chains."
        )
    refuse("label_steps", (not chain.steps for chain in chains), "steps")
    folder = Path(folder)
    content = [[to_chain(chain) for chain in chains], list(references)]
    settings = {
        "chains": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "policy": policy.name,
        "judge": None if judge is None else judge.name,
        "minimum": minimum,
        "maximum": maximum,
        "batch": batch,
        "seed": seed,
    }
    labelled: list[Chain] = []
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _claim(folder, settings)
        for shard, start in enumerate(range(0, len(chains), batch)):
            path = folder / f"{shard:05d}.jsonl"
            if not path.exists():
                part = slice(start, start + batch)
                counts = RolloutCounts(chains[part], minimum, maximum)
                for turn in range(maximum):
                    draw = np.random.default_rng([seed, shard, turn])
                    if not counts.extend(references[part], policy, judge, draw):
                        break
                # Said after the first shard, not after hours; unwritten, so that the folder is
                # free for other settings.
                if not labelled and not any(any(chain.mask) for chain in counts.chains()):
                    raise ValueError(counts.why_unlabelled(policy.name))
                if not labelled:
                    write_json(folder / SETTINGS, settings)
                _write(path, counts.chains())
            labelled += _read(path)
            progress(len(labelled))
    return labelled


def check_counts(minimum: int, maximum: int, batch: int) -> None:
    """Raise a `ValueError` for arguments of `label_steps` that are out of range."""
    if not 1 <= minimum <= maximum or batch < 1:
        raise ValueError(
            f"label_steps needs 1 <= minimum <= maximum and batch >= 1; got minimum={minimum}, "
            f"maximum={maximum}, batch={batch}."
        )


class RolloutCounts:
    """Right and all rollouts of every step of some chains.

    Args:
        chains: counts that they have are where these start.
        minimum: rollouts of each step.
        maximum: rollouts of an undecided step.
    """

    def __init__(self, chains: Sequence[Chain], minimum: int, maximum: int) -> None:
        self._chains, self._minimum, self._maximum = chains, minimum, maximum
        self._right = [[x or 0 for x in c.successes] or [0] * len(c.steps) for c in chains]
        self._tried = [[x or 0 for x in c.rollouts] or [0] * len(c.steps) for c in chains]
        self._asked = self._missing = 0

    def extend(
        self,
        references: Sequence[str],
        policy: Policy,
        judge: Judge | None,
        draw: np.random.Generator,
    ) -> int:
        """Add a rollout to every undecided step; return how many those were."""
        places = [
            (i, s)
            for i, chain in enumerate(self._chains)
            for s in range(len(chain.steps))
            if self._undecided(self._right[i][s], self._tried[i][s])
        ]
        if not places:
            return 0
        prompts = [self._chains[i].prompt for i, _ in places]
        prefixes = [self._chains[i].steps[: s + 1] for i, s in places]
        rests = policy.complete(prompts, prefixes, draw)
        self._asked += len(rests)
        self._missing += sum(rest is None for rest in rests)
        responses = [
            None if rest is None else "\n".join([*prefix, rest] if rest else prefix)
            for prefix, rest in zip(prefixes, rests, strict=True)
        ]
        answers = [references[i] for i, _ in places]
        outcomes = judged(prompts, responses, answers, judge)
        for (i, s), right in zip(places, outcomes, strict=True):
            if right is not None:
                self._right[i][s] += right
                self._tried[i][s] += 1
        return len(places)

    def why_unlabelled(self, policy: str) -> str:
        """Return why no step has a label, for a message, and what to change."""
        open_ = self._asked - self._missing
        return (
            f"no step of the first {len(self._chains)} solutions got a label: {self._missing} of "
            f"{self._asked} completions failed, or were cut off before they ended by themselves"
            f"{f', and the judge left {open_} undecided' if open_ else ''}. The policy was "
            f"{policy}. Raise --max-tokens, or choose a model that ends its solutions."
        )

    def _undecided(self, right: int, tried: int) -> bool:
        return tried < self._minimum or (0 < right < tried and tried < self._maximum)

    def chains(self) -> list[Chain]:
        """Return the chains with these counts and the labels that follow from them."""
        return [
            replace(
                chain,
                labels=tuple(a / b if b else None for a, b in zip(right, tried, strict=True)),
                successes=tuple(right),
                rollouts=tuple(tried),
            )
            for chain, right, tried in zip(self._chains, self._right, self._tried, strict=True)
        ]


def judged(
    prompts: Sequence[str],
    responses: Sequence[str | None],
    references: Sequence[str],
    judge: Judge | None = None,
) -> list[bool | None]:
    """Return whether each response's final answer is right: by rules, then by the judge.

    Without a judge what rules cannot decide is wrong. A response without an answer is wrong, no
    response (`None`) is neither.
    """
    answers = [None if text is None else final_answer(text) for text in responses]
    verdicts = [
        None if answer is None else agree(answer, reference)
        for answer, reference in zip(answers, references, strict=True)
    ]
    undecided = [i for i, x in enumerate(verdicts) if x is None and answers[i] is not None]
    if not undecided:
        return verdicts
    decided: Sequence[bool | None] = [False] * len(undecided)
    if judge is not None:
        decided = judge(
            [prompts[i] for i in undecided],
            [answers[i] or "" for i in undecided],
            [references[i] for i in undecided],
        )
    for i, right in zip(undecided, decided, strict=True):
        verdicts[i] = right
    return verdicts


def digest(text: str) -> str:
    """Return eight hexadecimal digits that tell a text, such as a template, in a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds something else than shards of these settings."""
    path, shards = folder / SETTINGS, any(folder.glob("*.jsonl"))
    if shards and not path.exists():
        raise ValueError(f"{folder} holds .jsonl files that are not shards. Name another folder.")
    if shards:
        earlier = read_json(path, "Name another folder, or restore it from a copy.")
        other = [key for key in settings if earlier.get(key) != settings[key]]
        if other:
            listed = ", ".join(f"{k}={earlier.get(k)!r} (now {settings[k]!r})" for k in other)
            raise ValueError(
                f"{folder} holds rollouts of other settings: {listed}. Name another folder."
            )


def _write(path: Path, chains: Sequence[Chain]) -> None:
    rows = [json.dumps(to_chain(chain), ensure_ascii=False) for chain in chains]
    write_text(path, "".join(f"{row}\n" for row in rows))


def _read(path: Path) -> list[Chain]:
    """Return the chains of a shard."""
    advice = "Delete it; the same command labels its solutions again."
    lines = read_bytes(path, advice).split(b"\n")
    try:
        return [from_chain(json.loads(line)) for line in lines if line]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"it is not a shard: {error}", advice) from error
