"""A simulated coder: with probability s it does what the feedback calls for, else it guesses.

It reads nothing but its message, as a language model would, and knows nothing of the task: neither
what a name means nor which term is a good one. So s = 0 is random search, and what s > 0 gains has
come through the feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from metaopt.engine.ranges import check_ranges
from metaopt.llm.chat import Message
from metaopt.problems.reward_design.feedback_text import PROCESS, SUM, Section, read_sections
from metaopt.problems.reward_design.guessing import after
from metaopt.problems.reward_design.language import Expression, Term, parse
from metaopt.problems.reward_design.prompts import shown_names, shown_reward, shown_success

MOST_TERMS = 4
"""Terms of a reward that the coder writes; a further one takes the place of the oldest."""

HIGH_SUCCESS, LOW_SUCCESS = 0.8, 0.2
"""Success from which a reward is only varied, and up to which a rising term is suspected."""

FAR = 10.0
"""Ratio of the sizes of two terms above which they are rescaled."""

Curve = Mapping[str, Sequence[float]]
Pair = tuple[np.ndarray, np.ndarray]


class SimulatedCoder:
    """Answers `prompts.asking`, each time as a function of the message.

    With probability `skill` it drops every term whose sum has risen while success has not, brings
    terms of very different size to one size, and adds a term that is larger in the successful
    episode shown than in the failed one; a reward under which most episodes succeed it varies in
    one weight. Where none of this is called for, and with probability 1 - `skill`, it guesses.

    Args:
        skill: probability s of doing what the feedback calls for, in [0, 1].
        guess: `guess(names, draw)` returns the text of a random reward.

    Raises:
        ValueError: a skill that is not a probability.
    """

    def __init__(
        self, skill: float, guess: Callable[[Sequence[str], np.random.Generator], str]
    ) -> None:
        self.skill, self.guess = skill, guess
        check_ranges(self, "0 <= skill <= 1")

    def __call__(self, role: str, messages: Sequence[Message], key: int) -> str:
        """Return the answer to the question that a conversation begins with."""
        draw = np.random.default_rng(key)
        text = messages[0]["content"]
        terms = improved(text, draw) if draw.random() < self.skill else None
        if terms is None:
            reward = self.guess(shown_names(text), draw)
        else:
            reward = Expression(tuple(terms)).text
        return f"```reward\n{reward}\n```"


def improved(text: str, draw: np.random.Generator) -> list[Term] | None:
    """Return the terms that a message calls for; `None` where it calls for no change, or for none.

    Args:
        text: what `prompts.asking` wrote.
        draw: of choices.
    """
    names, shown = shown_names(text), shown_reward(text)
    if shown is None:
        return None
    terms = list(parse(shown, names).terms)
    sections = read_sections(text)
    changed = terms
    for section in sections:
        if section.title == PROCESS:
            changed = rescaled(without_rising(changed, section.table), section.table)
    if new := separating(sections, names, changed, draw):
        changed = [*changed, new][-MOST_TERMS:]
    if changed == terms and (shown_success(text) or 0.0) >= HIGH_SUCCESS:
        changed = varied(terms, draw)
    return None if changed == terms or not changed else changed


def without_rising(terms: Sequence[Term], curve: Curve) -> list[Term]:
    """Return the terms but those whose sum has risen in training, where success has not."""
    success = curve.get("success", ())
    if not success or success[-1] > max(LOW_SUCCESS, success[0]):
        return list(terms)
    return [term for term in terms if not _rose(curve.get(SUM + term.name, ()))]


def rescaled(terms: Sequence[Term], curve: Curve) -> list[Term]:
    """Return the terms with one size, their geometric mean, where two differ by more than `FAR`.

    The size of a term is the largest of its sums, without sign.
    """
    sums = {term.name: curve.get(SUM + term.name, ()) for term in terms}
    sizes = {name: max(map(abs, s)) for name, s in sums.items() if any(s)}
    if not sizes or max(sizes.values()) <= FAR * min(sizes.values()):
        return list(terms)
    mean = float(np.exp(np.mean(np.log(list(sizes.values())))))
    return [
        _weighted(term, term.weight * mean / sizes[term.name]) if term.name in sizes else term
        for term in terms
    ]


def separating(
    sections: Sequence[Section],
    names: Sequence[str],
    terms: Sequence[Term],
    draw: np.random.Generator,
) -> Term | None:
    """Return a new term that is larger in the successful episode shown than in the failed one.

    Quantities are ranked by the difference of their means in units of their deviations, and each is
    taken with half the probability of the one before. Its weight gives the term a size of 1.
    """
    episodes = {s.success: s.table for s in sections if s.success is not None}
    ranked = []
    for name, body, (high, low) in _quantities(episodes, names):
        size = max(np.abs(high).max(), np.abs(low).max())
        gap = high.mean() - low.mean()
        if size == 0 or gap == 0:
            continue
        weight = float(np.sign(gap) / size)
        label = f"{'more' if gap > 0 else 'less'}_{name}"
        new = _weighted(parse(f"{label} := 1 * ({body})", names).terms[0], weight)
        if all(new.body != term.body and label != term.name for term in terms):
            ranked.append((abs(gap) / (high.std() + low.std() + 1e-3 * size), new))
    if not ranked:
        return None
    ranked.sort(key=lambda pair: -pair[0])
    return ranked[min(int(draw.geometric(0.5)), len(ranked)) - 1][1]


def varied(terms: Sequence[Term], draw: np.random.Generator) -> list[Term]:
    """Return the terms with one weight doubled or halved."""
    place, factor = int(draw.integers(len(terms))), float(draw.choice([0.5, 2.0]))
    return [
        _weighted(term, term.weight * factor) if i == place else term
        for i, term in enumerate(terms)
    ]


def _quantities(
    episodes: Mapping[bool, Curve], names: Sequence[str]
) -> Iterable[tuple[str, str, Pair]]:
    """Yield label, expression and values in success and failure of each quantity that both show.

    They are the quantities themselves, their sizes where they change sign, and their changes in a
    step where the reward may use the value after it.
    """
    if len(episodes) < 2:
        return
    steps = [np.diff(np.asarray(episodes[won].get("step", ()), float)) for won in (True, False)]
    for name in names:
        high, low = (np.asarray(episodes[won].get(name, ()), float) for won in (True, False))
        if not high.size or not low.size or not np.isfinite([*high, *low]).all():
            continue
        yield name, name, (high, low)
        if min(high.min(), low.min()) < 0 < max(high.max(), low.max()):
            yield f"size_{name}", f"abs({name})", (np.abs(high), np.abs(low))
        later = after(name)
        lengths = [len(values) - 1 for values in (high, low)]
        if later in names and 0 not in lengths and lengths == list(map(len, steps)):
            gains = (np.diff(high) / steps[0], np.diff(low) / steps[1])
            yield f"gain_{name}", f"{later} - {name}", gains


def _weighted(term: Term, weight: float) -> Term:
    """Return the term with a weight of four digits, of size 0.0001 to 10,000."""
    size = float(f"{np.clip(abs(weight), 1e-4, 1e4):.4g}")
    return replace(term, weight=-size if weight < 0 else size)


def _rose(values: Sequence[float]) -> bool:
    """Return whether the second half of the values is above the first."""
    half = len(values) // 2
    return half > 0 and float(np.mean(values[half:])) > float(np.mean(values[:half]))
