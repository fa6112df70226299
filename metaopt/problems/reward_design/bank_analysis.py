"""A test on recorded episodes, judged by rewards whose success is known.

Every reward of a bank is trained under once. Then the test's verdict on each can be compared with
the success of its training, and a search with the test replayed in any order without training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metaopt.metrics.binary import auroc
from metaopt.problems.reward_design.training import GOOD

Numbers = NDArray[np.float64]
Share = Callable[[Numbers, NDArray[np.bool_]], float]
"""Returns which share of successes, or of pairs, the rates of episodes order correctly."""

SOLVED = 0.8
"""Success from which a search is over."""


class Bank(NamedTuple):
    """B rewards that were trained under, and N recorded episodes of the trained policies.

    Args:
        success: of each training, (B).
        source: whose training each episode is of, (N) integers.
        won: which episodes are successes, (N).
        rates: what each reward gives for each episode, a step or in all, (B, N).
    """

    success: Numbers
    source: NDArray[np.int64]
    won: NDArray[np.bool_]
    rates: Numbers


def verdicts(bank: Bank, share: Share, threshold: float, most: int, key: int) -> dict[str, float]:
    """Return how well the test tells good rewards, from a store of all policies' episodes.

    Such a store is the best case: the one of a search begins empty.

    Args:
        bank: the rewards.
        share: the test's.
        threshold: least share that passes.
        most: episodes of the store, half of each kind where there are as many.
        key: of the draw of the store.

    Returns:
        `auroc` of the share against success > `GOOD`, 0.5 where all or none are good; `pass`, the
        share of rewards that pass; `precision` and `recall` of passing, 0 where nothing passes or
        nothing is good.
    """
    draw = np.random.default_rng(key)
    chosen = []
    for kind in (True, False):
        episodes = np.flatnonzero(bank.won == kind)
        chosen.append(draw.permutation(episodes)[: most // 2])
    store = np.concatenate(chosen)
    shares = np.array([share(rates[store], bank.won[store]) for rates in bank.rates])
    good, passed = bank.success > GOOD, shares >= threshold
    area = auroc(shares, good)
    return {
        "auroc": 0.5 if area is None else area,
        "pass": float(passed.mean()),
        "precision": float(good[passed].mean()) if passed.any() else 0.0,
        "recall": float(passed[good].mean()) if good.any() else 0.0,
    }


class Replay(NamedTuple):
    """A search over the rewards of a bank in one order.

    Args:
        best: highest success after each training.
        proposals: rewards proposed until each training, this one included.
    """

    best: list[float]
    proposals: list[int]


def replay(
    bank: Bank, order: NDArray[np.int64], share: Share | None, threshold: float,
    store: NDArray[np.int64],
) -> Replay:  # fmt: skip
    """Return the search that proposes rewards in an order and skips those that fail the test.

    Args:
        bank: the rewards.
        order: of the proposals, some or all of the B rewards.
        share: the test's; `None` trains all.
        threshold: least share that passes.
        store: episodes that are recorded before; those of each training are added.
    """
    best: list[float] = []
    proposals: list[int] = []
    for count, reward in enumerate(order, 1):
        if share and share(bank.rates[reward, store], bank.won[store]) < threshold:
            continue
        best.append(max(bank.success[reward], *best[-1:], 0.0))
        proposals.append(count)
        store = np.concatenate([store, np.flatnonzero(bank.source == reward)])
    return Replay(best, proposals)


def savings(
    bank: Bank, share: Share | None, threshold: float, permutations: int, key: int,
    seeded: int = 0, without: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Return means over random orders of what a search with the test costs and finds.

    Args:
        bank: the rewards.
        share: the test's; `None` trains all.
        threshold: least share that passes.
        permutations: orders.
        key: of the orders: the same in each call, so that rows are paired.
        seeded: successes, and as many failures, that are recorded before: of the trainings of a
            good and a bad reward, drawn for each order, which are not proposed again.
        without: leave the same two out but record nothing of them, the control for `seeded`.

    Returns:
        `best_3` and `best_6`, the highest success after three and six trainings; `solved`, the
        share of orders in which a success of `SOLVED` is reached; `until`, the trainings until
        then, and as many as there are rewards to propose where none reaches it, so that a test
        that rejects all gains nothing by it; `proposals_6`, the rewards proposed until the sixth
        training, all of them where there are fewer.
    """
    sums = dict.fromkeys(("best_3", "best_6", "solved", "until", "proposals_6"), 0.0)
    for i in range(permutations):
        draw = np.random.default_rng([key, i])
        order = draw.permutation(len(bank.success))
        store = np.empty(0, np.int64)
        if seeded:
            pair, store = _seeds(bank, seeded, draw)
            order = order[~np.isin(order, pair)]
            store = store[:0] if without else store
        best, proposals = replay(bank, order, share, threshold, store)
        solved = [n for n, success in enumerate(best, 1) if success >= SOLVED]
        for count in (3, 6):
            sums[f"best_{count}"] += [0.0, *best][min(count, len(best))]
        sums["solved"] += bool(solved)
        sums["until"] += solved[0] if solved else len(order)
        sums["proposals_6"] += proposals[5] if len(proposals) >= 6 else len(order)
    return {name: float(total / permutations) for name, total in sums.items()}


def seedable(bank: Bank, count: int) -> bool:
    """Return whether a good reward has `count` successes on record, and a bad one failures."""
    return all(len(able) > 0 for able in _able(bank, count))


def _able(bank: Bank, count: int) -> list[NDArray[np.int64]]:
    """Return the good rewards with `count` successes, and the bad ones with as many failures."""
    able = []
    for kind in (True, False):
        counts = np.bincount(bank.source[bank.won == kind], minlength=len(bank.success))
        able.append(np.flatnonzero(((bank.success > GOOD) == kind) & (counts >= count)))
    return able


def _seeds(
    bank: Bank, count: int, draw: np.random.Generator
) -> tuple[list[int], NDArray[np.int64]]:
    """Return a good and a bad reward with `count` successes and failures, and these episodes."""
    rewards, episodes = [], []
    for kind, able in zip((True, False), _able(bank, count), strict=True):
        rewards.append(int(draw.choice(able)))
        recorded = np.flatnonzero((bank.source == rewards[-1]) & (bank.won == kind))
        episodes.append(draw.permutation(recorded)[:count])
    return rewards, np.concatenate(episodes)
