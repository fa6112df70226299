"""A controlled world for process reward models, in which every domain's quality is known.

Chained arithmetic modulo 5. The policy that answers the questions has misconceptions, so a step's
label is how often the same policy gets from there to the right answer, counted on rollouts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from metaopt.problems.process_reward.data.arithmetic_world import KINDS, WORDS, ArithmeticWorld
from metaopt.problems.process_reward.data.dataset import ProcessData

__all__ = ["DOMAINS", "KINDS", "WORDS", "arithmetic", "named"]

DOMAINS = ("clean", "clean", "clean", "easy", "noisy", "wrongkey", "style", "inverted")


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
            carry that of the first clean domain, so this method knows one that can be trusted.
        seed: of the policy's misconceptions and of everything that is drawn.

    Raises:
        ValueError: an argument out of its range, or an unknown kind of domain.

    Cost: about two seconds for the default.
    """
    _check(
        domains, meta_size, meta_noise, chains=(chains, 1), questions=(questions, 2),
        candidates=(candidates, 1), held_out=(held_out, 0), rollouts=(rollouts, 1),
    )  # fmt: skip
    names = named(domains)
    if domain_token and "clean" not in domains:
        raise ValueError("domain_token needs a clean domain, whose name the test carries.")
    trusted = next((n for n, k in zip(names, domains, strict=True) if k == "clean"), "")
    token = trusted if domain_token else ""
    world = ArithmeticWorld(seed, rollouts)
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
    count, numbers = Counter(domains), Counter[str]()
    names = []
    for kind in domains:
        numbers[kind] += 1
        names.append(f"{kind}_{numbers[kind]}" if count[kind] > 1 else kind)
    return tuple(names)


def _quality(names: Sequence[str], kinds: Sequence[str]) -> dict[str, float] | None:
    quality = {name: KINDS[kind] for name, kind in zip(names, kinds, strict=True)}
    return quality if any(quality.values()) else None


def _check(
    domains: Sequence[str], meta_size: int, meta_noise: float, **least: tuple[int, int]
) -> None:
    """Raise a `ValueError` unless each argument is in its range; `least`: (value, smallest)."""
    unknown = sorted(set(domains) - set(KINDS))
    if unknown or not domains:
        raise ValueError(f"domains must be of {', '.join(KINDS)}; got {', '.join(unknown)}.")
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ValueError(f"{name} must be >= {lowest}; got {value}.")
    if meta_size < 2 or meta_size % 2:
        raise ValueError(
            f"meta_size must be even and >= 2, half right, half wrong; got {meta_size}."
        )
    if not 0 <= meta_noise <= 1:
        raise ValueError(f"meta_noise must be in [0, 1]; got {meta_noise}.")
