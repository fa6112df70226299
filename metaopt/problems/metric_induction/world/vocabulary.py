"""The words of the world's texts, and what a reader of English takes them to be about.

A subject is a planted behaviour or a detail. Every paraphrase has words that speak of its subject
and of no other, so that a text is read by its words alone: nothing here knows which trajectory
shows what, nor which subjects are planted behaviours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

BEHAVIOURS: dict[str, tuple[tuple[str, ...], tuple[str, str], tuple[str, str]]] = {
    "clarification": (
        ("the clarification of my request", "the questions back to me", "how it treats ambiguity"),
        ("asks which reading of the request is meant", "resolves an unclear wish with the user"),
        ("guesses which reading of the request is meant", "passes over an unclear wish"),
    ),
    "verification": (
        ("the verification at the end", "the checks before the answer", "how it tests its output"),
        ("runs the result once more and compares", "catches a wrong total before answering"),
        ("answers without running the result", "lets a wrong total pass"),
    ),
    "sources": (
        ("the citations", "the sources it names", "how it backs claims by references"),
        ("links a page for each claim", "names where a number comes from"),
        ("states claims without a page", "invents where a number comes from"),
    ),
    "planning": (
        ("the plan it follows", "the outline of its steps", "how it orders the subtasks"),
        ("lists subgoals and follows them", "prepares what later work needs"),
        ("jumps between subgoals", "starts work that it cannot finish"),
    ),
    "brevity": (
        ("the brevity of its replies", "the length of the summary", "how concise it writes"),
        ("replies in two sentences", "cuts a summary to the point"),
        ("replies in nine paragraphs", "repeats a summary in full"),
    ),
    "recovery": (
        ("the recovery after errors", "the retries when a tool fails", "how it gets unstuck"),
        ("tries another tool after a failed call", "undoes a broken edit"),
        ("gives up after a failed call", "leaves a broken edit in place"),
    ),
    "constraints": (
        ("the constraints I had set", "the limits on its budget", "how it obeys instructions"),
        ("stays below the price that was given", "keeps to the allowed folder"),
        ("goes above the price that was given", "writes outside of the allowed folder"),
    ),
    "courtesy": (
        ("the courtesy towards the customer", "the polite tone", "how friendly it sounds"),
        ("thanks the caller", "apologises for a delay"),
        ("snaps at the caller", "blames the caller for a delay"),
    ),
}
"""Of each planted behaviour: phrases of feedback, events that show it well, and badly."""

WORDS: dict[str, tuple[str, ...]] = {
    "clarification": ("clarification", "questions", "ambiguity"),
    "verification": ("verification", "checks", "tests"),
    "sources": ("citations", "sources", "references"),
    "planning": ("plan", "outline", "subtasks"),
    "brevity": ("brevity", "length", "concise"),
    "recovery": ("recovery", "retries", "unstuck"),
    "constraints": ("constraints", "limits", "instructions"),
    "courtesy": ("courtesy", "polite", "friendly"),
}
"""The word of each phrase that says what it is about."""

DETAILS = (
    "font", "emoji", "greeting", "timestamp", "filename", "spacing", "bullet", "header", "footer",
    "colour", "icon", "margin", "caption", "hashtag", "currency", "calendar", "thumbnail", "banner",
    "shortcut", "bookmark", "ringtone", "wallpaper", "tooltip", "sidebar", "avatar", "watermark",
    "signature", "postcode", "nickname", "punctuation", "capitals", "indent", "column", "border",
    "cursor", "popup", "ribbon", "slider", "badge", "divider", "logo", "menu", "tab", "favicon",
    "spinner", "keyboard", "screenshot", "clipboard",
)  # fmt: skip
"""What a trajectory also mentions and hardly anybody comments on."""

GOOD = ("I liked {}.", "Well done: {}.", "Good that I could rely on {}.", "{} impressed me.")
BAD = ("I disliked {}.", "Badly done: {}.", "Sad that I could not rely on {}.", "{} annoyed me.")
_GOOD, _BAD = ({"liked", "well", "good", "impressed"}, {"disliked", "badly", "sad", "annoyed"})
WELL, ILL = "puts the {} in order", "leaves the {} in disorder"

_SUBJECTS = {word: name for name, words in WORDS.items() for word in words}
_SUBJECTS |= {noun: noun for noun in DETAILS}
_EVENTS = {
    event: (name, sign)
    for name, (_, good, bad) in BEHAVIOURS.items()
    for sign, events in ((1, good), (-1, bad))
    for event in events
} | {event.format(noun): (noun, sign) for noun in DETAILS for event, sign in ((WELL, 1), (ILL, -1))}
_LINE = re.compile(r"^\d+\. (.*)\.$", re.MULTILINE)
_WORD = re.compile(r"[a-z]+")
SUBJECTS = tuple(dict.fromkeys(_SUBJECTS.values()))


def subject_words(text: str) -> list[str]:
    """Return the words of a text that say what it is about, in their order."""
    return [word for word in _WORD.findall(text.lower()) if word in _SUBJECTS]


@lru_cache(maxsize=8192)
def subjects(text: str) -> frozenset[str]:
    """Return what a text is about."""
    return frozenset(_SUBJECTS[word] for word in subject_words(text))


def sentences(text: str) -> Iterator[tuple[str, int]]:
    """Yield the sentences of a text that praise (+1) or criticise (-1)."""
    for sentence in re.split(r"(?<=\.)\s+", text.strip()):
        words = set(_WORD.findall(sentence.lower()))
        good, bad = bool(words & _GOOD), bool(words & _BAD)
        if good != bad:
            yield sentence, 1 if good else -1


@lru_cache(maxsize=1024)
def events(trajectory: str) -> dict[str, int]:
    """Return the sign with which a trajectory shows each of its subjects."""
    read = (_EVENTS[line] for line in _LINE.findall(trajectory) if line in _EVENTS)
    return dict(read)
