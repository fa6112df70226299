"""Process supervision from your own files of chains, in any of the published formats."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from metaopt.problems.process_reward.data.dataset import ProcessData
from metaopt.problems.process_reward.data.formats import FORMATS, Chain, Renaming, read
from metaopt.problems.process_reward.data.formats.chain import refuse
from metaopt.problems.process_reward.data.meta_set import leaked, meta_set, question_key

Leaks = Literal["refuse", "drop", "keep"]


def process_files(
    train: str,
    meta: str,
    candidates: str | None = None,
    held_out: str | None = None,
    images: str | None = None,
    meta_size: int | None = None,
    limit: int | None = None,
    leaks: Leaks = "refuse",
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    strict: bool = True,
) -> ProcessData:
    """Return chains of files, folders or data sets of the hub, in formats told by their columns.

    Args:
        train: chains with step labels; a chain without a domain takes its file's name.
        meta: chains with an outcome; no question of `candidates` or `held_out` may be among them.
        candidates: chains with an outcome, equally many for every question (text and images), in
            any order; `None` for no best-of-n.
        held_out: chains with true step labels, 0 or 1, by domain; `None` for no detection of
            errors.
        images: folder that the paths of images start from; `None` for the working folder.
        meta_size: chains of the meta-set, even; `None` is the most that balance allows.
        limit: most training chains of each domain, drawn by `seed`; `None` is all.
        leaks: what becomes of training chains that ask a question of `candidates` or `held_out`:
            refuse, drop (a warning counts them) or keep. Questions are compared as by `leaked`:
            equal texts with other images count as equal.
        seed: of the meta-set and of what a limit leaves out.
        columns: {column of a format: its name in the source}, of all four sources.
        strict: refuse malformed rows; else leave them out, with a warning that counts them.

    Raises:
        FileNotFoundError: a source is missing.
        ValueError: malformed rows, by reason; chains without a label or an outcome,
            with the formats that have one; a meta-set with one class, chains without steps or
            leaked questions; leaked training chains, with their count; candidates
            that are not equally many.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be >= 1 or null; got {limit}.")
    if leaks not in get_args(Leaks):
        raise ValueError(f"leaks must be one of {', '.join(get_args(Leaks))}; got {leaks!r}.")
    renaming = Renaming(columns)
    sources = {"train": train, "meta": meta, "candidates": candidates, "held_out": held_out}
    parts = {part: _chains(part, x, images, renaming, strict) for part, x in sources.items()}
    renaming.refuse_unused()
    training, tested = parts["train"], parts["candidates"]
    labelled = [f"{name} ({', '.join(f.columns)})" for name, f in FORMATS.items() if f.labels]
    judged = [f"{name} ({f.outcome})" for name, f in FORMATS.items() if f.outcome]
    advice = f"Formats with one: {', '.join(labelled)}."
    refuse(f"train={train}", (not any(c.mask) for c in training), "label of a step", advice)
    advice = (
        f"Formats with one: {', '.join(judged)}. columns={{outcome: NAME}} reads it from a column "
        f"of another name."
    )
    for part in ("meta", "candidates"):
        lacking = (c.outcome is None for c in parts[part])
        refuse(f"{part}={sources[part]}", lacking, "outcome", advice)
    asked: dict[tuple[str, tuple[str, ...]], list[Chain]] = {}
    for chain in tested:
        asked.setdefault((question_key(chain.prompt), chain.images), []).append(chain)
    tests = list(asked.values())
    by_domain: dict[str, list[Chain]] = {}
    for chain in parts["held_out"]:
        by_domain.setdefault(chain.domain, []).append(chain)
    test = {
        "candidates": [chain for chains in tests for chain in chains],
        "held_out": [chain for chains in by_domain.values() for chain in chains],
    }
    return ProcessData(
        train=_limited(_apart(training, test, leaks), limit, seed),
        meta=meta_set(parts["meta"], [*test["candidates"], *test["held_out"]], meta_size, seed),
        candidates=tests,
        held_out=by_domain,
    )


def _chains(
    part: str, source: str | None, images: str | None, renaming: Renaming, strict: bool
) -> list[Chain]:
    if source is None:
        return []
    try:
        chains = list(read(source, renaming=renaming, strict=strict))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{part}={source}: {error}") from error
    if images is None:
        return chains
    root = Path(images)
    return [replace(c, images=tuple(str(root / path) for path in c.images)) for c in chains]


def _apart(chains: list[Chain], test: Mapping[str, list[Chain]], leaks: Leaks) -> list[Chain]:
    """Return the training chains, or those that ask no question of the test sets."""
    positions = {name: leaked(chains, known) for name, known in test.items() if known}
    shared = {i for rows in positions.values() for i in rows}
    if leaks == "keep" or not shared:
        return chains
    counts = " and ".join(f"{len(rows)} of {name}" for name, rows in positions.items() if rows)
    message = f"train: {len(shared)} of {len(chains)} chains ask questions of the test, {counts}"
    if leaks == "refuse":
        first = min(shared)
        raise ValueError(
            f"{message}; the first is chain {first}, {chains[first].prompt!r:.80}. Set leaks=drop "
            "to leave them out, or leaks=keep to train on them."
        )
    warnings.warn(f"{message}: left out", stacklevel=3)
    return [chain for i, chain in enumerate(chains) if i not in shared]


def _limited(chains: Sequence[Chain], limit: int | None, seed: int) -> list[Chain]:
    """Return at most `limit` chains of each domain, in their order."""
    if limit is None:
        return list(chains)
    rank = np.random.default_rng(seed).permutation(len(chains))
    chosen: set[int] = set()
    counts = Counter[str]()
    for i in np.argsort(rank).tolist():
        counts[chains[i].domain] += 1
        if counts[chains[i].domain] <= limit:
            chosen.add(i)
    return [chain for i, chain in enumerate(chains) if i in chosen]
