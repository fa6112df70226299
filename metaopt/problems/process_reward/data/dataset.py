"""What a process reward model is trained on, steered by and tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.data.formats.chain import refuse


@dataclass(frozen=True)
class ProcessData:
    """Chains of several domains with step labels, a meta-set, and test questions.

    Args:
        train: every chain has a domain and, for one step at least, a label.
        meta: chains with a known outcome, of no test question.
        candidates: of each test question its candidate chains, equally many, with outcomes.
        held_out: by domain, chains with true step labels: 1 before the first wrong step, 0 there,
            `None` where nobody knows.
        quality: of each training domain how far its labels can be trusted, in [0, 1]; `None` where
            nobody knows.
        answers: the final answer of every candidate, for the majority vote, or `None`.
        resplit: test questions for each question of the meta-set where a seed splits one set; or
            the like of `held_out` and `train` where that is more; 0 where the tests are sets of
            their own.

    Raises:
        ValueError: names the argument and the first entries that break one of these rules.
    """

    train: Sequence[Chain]
    meta: Sequence[Chain]
    candidates: Sequence[Sequence[Chain]]
    held_out: Mapping[str, Sequence[Chain]] = field(default_factory=dict)
    quality: Mapping[str, float] | None = None
    answers: Sequence[Sequence[str]] | None = None
    resplit: float = 0.0

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("train holds no chain.")
        refuse("train", (not chain.domain for chain in self.train), "domain")
        refuse("train", (not any(chain.mask) for chain in self.train), "label")
        candidates = [chain for chains in self.candidates for chain in chains]
        for name, chains in (("meta", self.meta), ("candidates", candidates)):
            refuse(name, (chain.outcome is None for chain in chains), "outcome")
            refuse(name, (not chain.steps for chain in chains), "steps")
        counts = {len(chains) for chains in self.candidates}
        if len(counts) > 1 or 0 in counts:
            raise ValueError(
                f"candidates must be equally many for every question, and one at least; got "
                f"{_counted(self.candidates)}."
            )
        for name, chains in self.held_out.items():
            _true(name, chains)
        _check_quality(self.quality, self.domains)
        if self.answers is not None:
            shape = [len(chains) for chains in self.candidates]
            if [len(given) for given in self.answers] != shape:
                raise ValueError("answers must be one for each candidate of each question.")

    @property
    def domains(self) -> tuple[str, ...]:
        """The training domains, sorted."""
        return tuple(sorted({chain.domain for chain in self.train}))


def _counted(candidates: Sequence[Sequence[Chain]]) -> str:
    """Return how many questions have how many candidates, with the first question of each count."""
    by_count: dict[int, list[Sequence[Chain]]] = {}
    for chains in candidates:
        by_count.setdefault(len(chains), []).append(chains)
    return "; ".join(
        f"{count} for {len(rows)} questions" + (f" ({rows[0][0].prompt!r:.40})" if count else "")
        for count, rows in sorted(by_count.items())
    )


def _true(domain: str, chains: Sequence[Chain]) -> None:
    """Refuse held-out labels that are not certain, and a domain without any."""
    for i, chain in enumerate(chains):
        soft = [label for label in chain.labels if label not in (0, 1, None)]
        if soft:
            raise ValueError(
                f"held_out: chain {i} {chain.qid!r} of {domain} has the label {soft[0]:g}; labels "
                "must be 0, 1 or unknown there. `harden` rounds soft labels."
            )
    if not any(any(chain.mask) for chain in chains):
        raise ValueError(
            f"held_out: none of the {len(chains)} chains of {domain} has a label. Label them, or "
            "leave the domain out."
        )


def _check_quality(quality: Mapping[str, float] | None, domains: Sequence[str]) -> None:
    if quality is None:
        return
    if set(quality) != set(domains):
        raise ValueError(
            f"quality must name the training domains {', '.join(domains)}; got "
            f"{', '.join(quality)}."
        )
    for name, value in quality.items():
        if not 0 <= value <= 1:
            raise ValueError(f"quality of {name} must be in [0, 1]; got {value}.")
    if not any(quality.values()):
        raise ValueError("quality must be above 0 for one domain at least.")
