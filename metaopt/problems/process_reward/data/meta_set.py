"""The meta-set: chains with a known outcome, as many right as wrong, of no test question."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.data.formats.chain import counted

ALIKE = str.maketrans("‘’‚‛“”„‟‐‑‒–—―−", "''''\"\"\"\"-------")
HEADING = re.compile(r"(?:#+ *)?question: *")


def question_key(text: str) -> str:
    """Return a question's text for comparison.

    Case, white space, Unicode's compatible forms, the kind of quotes and dashes and a heading
    "Question:" in front make no difference; everything else does.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).translate(ALIKE).casefold().split())
    while heading := HEADING.match(plain):
        plain = plain[heading.end() :]
    return plain


def leaked(chains: Sequence[Chain], test: Iterable[Chain | str]) -> list[int]:
    """Return the positions of the chains whose question is in the test set.

    Questions are compared by `question_key`; equal texts with other images count as equal.
    """
    held_out = {question_key(x if isinstance(x, str) else x.prompt) for x in test}
    return [i for i, chain in enumerate(chains) if question_key(chain.prompt) in held_out]


def meta_set(
    chains: Sequence[Chain],
    test: Iterable[Chain | str],
    size: int | None = None,
    seed: int = 0,
) -> list[Chain]:
    """Return chains for the meta-set, half of them right and half wrong, in random order.

    Questions with a right and a wrong chain come first, with one of each (as DreamPRM builds its
    meta-set); chains drawn at random from the rest fill up.

    Args:
        chains: candidates; their outcomes are the meta-labels.
        test: the test set's chains or questions; give an empty list where there is none.
        size: number of chains, even; `None` is the most that balance allows.
        seed: another seed is another choice.

    Raises:
        ValueError: candidates without steps, without an outcome, with a test question, or of one
            class only, all with their counts; or a size that is odd, below 2 or too large.
    """
    chains = list(chains)
    right = [i for i, chain in enumerate(chains) if chain.outcome is True]
    wrong = [i for i, chain in enumerate(chains) if chain.outcome is False]
    _check(chains, test, len(right), len(wrong))
    most = min(len(right), len(wrong))
    if size is not None and (size % 2 or not 2 <= size <= 2 * most):
        raise ValueError(
            f"size={size} must be even and 2 to {2 * most}: there are {len(right)} right and "
            f"{len(wrong)} wrong chains. Leave it out to take the most."
        )
    if size is None and len(right) != len(wrong):
        logging.getLogger(__name__).warning(
            "meta-set: %d of %d chains are left out, so that half of the others are right "
            "(%d are right, %d wrong).",
            len(chains) - 2 * most, len(chains), len(right), len(wrong),
        )  # fmt: skip
    half = most if size is None else size // 2
    generator = np.random.default_rng(seed)
    queues = [[half_[i] for i in generator.permutation(len(half_))] for half_ in (right, wrong)]
    firsts = [_firsts(chains, queue) for queue in queues]
    # Questions answered rightly and wrongly come first: what tells their two chains apart is the
    # steps, and not how hard the question is.
    both = [key for key in firsts[0] if key in firsts[1]]
    chosen: list[int] = []
    for queue, first in zip(queues, firsts, strict=True):
        pairs = [first[key] for key in both][:half]
        paired = set(pairs)
        chosen += (pairs + [i for i in queue if i not in paired])[:half]
    return [chains[chosen[i]] for i in generator.permutation(len(chosen))]


def _firsts(chains: Sequence[Chain], queue: Sequence[int]) -> dict[tuple[object, ...], int]:
    """Return each question's first chain in the queue."""
    firsts: dict[tuple[object, ...], int] = {}
    for i in queue:
        firsts.setdefault((question_key(chains[i].prompt), chains[i].images), i)
    return firsts


def _check(chains: Sequence[Chain], test: Iterable[Chain | str], right: int, wrong: int) -> None:
    """Refuse candidates that no meta-set may have.

    Raises:
        ValueError: lists what is wrong with them, each with its count.
    """
    count, leaks = len(chains), leaked(chains, test)
    questions = len({question_key(chains[i].prompt) for i in leaks})
    wrongs = {
        "have no steps": [i for i, x in enumerate(chains) if not any(s.strip() for s in x.steps)],
        "have no outcome": [i for i, x in enumerate(chains) if x.outcome is None],
        f"ask one of {questions} questions of the test set (`leaked` finds them)": leaks,
    }
    reasons = [counted(places, count, what) for what, places in wrongs.items() if places]
    if not right or not wrong:
        reasons.append(
            f"{right} are right and {wrong} are wrong: a meta-set needs both, or it teaches "
            f"weights that only push scores one way"
        )
    if reasons:
        listed = "\n  ".join(reasons)
        raise ValueError(f"no meta-set from these {count} chains:\n  {listed}")
