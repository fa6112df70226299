"""Knapsacks filled by local search whose recipe of moves is a text: nothing here has a gradient.

The inner level packs a batch of 0/1 knapsacks; the outer variable is the text that says how. A
selection hyper-heuristic (Burke et al., Journal of the Operational Research Society 64, 2013).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback, Problem
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_ranges

MOVES = {
    "add": "put in a random item that fits",
    "drop": "take out a random item",
    "worst": "take out the item of the lowest value per weight",
    "swap": "exchange a random item for another that fits and is worth more",
}


@tree.tagged("packing")
class Packing(NamedTuple):
    """What the inner level holds, for n knapsacks of m items.

    Args:
        packed: items in now, (n, m) booleans.
        best: highest value reached so far, (n,).
    """

    packed: Tensor
    best: Tensor


class Instances(NamedTuple):
    """n knapsacks: weights and values (n, m), capacities and optimal values (n,)."""

    weights: Tensor
    values: Tensor
    capacity: Tensor
    optimum: Tensor


class Knapsack(Problem):
    """Choose the text, a list of moves, by which local search comes closest to the optimum.

    Inner level: an inner step runs through the moves of the text, over and over, until `moves` of
    them are made in every knapsack; the best packing met counts. Every inner run starts empty.
    Outer level: F(text) = mean over the knapsacks of 1 - best / optimum, in [0, 1]; the optimum
    is exact, by dynamic programming.

    Artifacts: for each knapsack its number, gap, and how full it is, worst first.

    Args:
        items: items m of a knapsack, >= 2. Weights are 1..`heaviest`, a value is the weight plus
            noise (weakly correlated instances, the hard kind: Pisinger, Computers & Operations
            Research 32, 2005), and the capacity is half the total weight.
        instances: knapsacks n to search on; as many again are held out.
        moves: moves in an inner step, >= 1.
        heaviest: largest weight, >= 1.
        recipe: the first text; words are the keys of `MOVES`.
        seed: seed of the instances.
    """

    def __init__(
        self,
        items: int = 40,
        instances: int = 16,
        moves: int = 60,
        heaviest: int = 50,
        recipe: str = "add",
        seed: int = 0,
    ) -> None:
        self.items, self.instances, self.heaviest = items, instances, heaviest
        self.moves, self.recipe = moves, recipe
        check_ranges(self, "items >= 2", "instances >= 1", "moves >= 1", "heaviest >= 1")
        parse(recipe)
        shape = (instances, items)
        self.train = draw_instances(shape, heaviest, generator(fold(seed, "knapsack", "train")))
        self.test = draw_instances(shape, heaviest, generator(fold(seed, "knapsack", "test")))

    def init_outer(self, generator: Generator) -> str:
        """Return the first text."""
        return self.recipe

    def init_inner(self, outer: str, inner: Packing | None, key: int) -> Packing:
        """Return empty knapsacks."""
        return empty(self.train)

    def inner_step(self, outer: str, inner: Packing, key: int) -> Packing:
        """Return the packing after `moves` more moves of the text."""
        return follow(outer, self.train, inner, self.moves, generator(key))

    def evaluate(self, outer: str, inner: Packing, key: int) -> Feedback:
        """Return the mean gap to the optimum, and the single ones as artifacts."""
        gaps = 1 - inner.best / self.train.optimum
        fill = (inner.packed * self.train.weights).sum(1) / self.train.capacity
        pairs = enumerate(zip(gaps.tolist(), fill.tolist(), strict=True))
        artifacts = [{"knapsack": i, "gap": gap, "fill": full} for i, (gap, full) in pairs]
        artifacts.sort(key=lambda entry: -entry["gap"])
        return Feedback(gaps.mean(), artifacts=artifacts, metrics={"inner/gap_max": gaps.max()})

    def metrics(self, outer: str, inner: Packing) -> Mapping[str, float]:
        """Return the mean gap that four inner steps of the text leave on held-out knapsacks."""
        draw = generator(fold(0, "knapsack", "evaluation"))
        packed = follow(outer, self.test, empty(self.test), 4 * self.moves, draw)
        return {"test_gap": float((1 - packed.best / self.test.optimum).mean())}


def parse(text: str) -> list[str]:
    """Return the moves of a text.

    Raises:
        ValueError: the text is empty or holds a word that is not a move.
    """
    words = text.split()
    unknown = [w for w in words if w not in MOVES]
    if unknown or not words:
        raise ValueError(f"a recipe is one or more of the words {', '.join(MOVES)}; got {text!r}.")
    return words


def draw_instances(shape: tuple[int, int], heaviest: int, draw: Generator) -> Instances:
    """Return random knapsacks with their optima."""
    weights = torch.randint(1, heaviest + 1, shape, generator=draw)
    noise = torch.randint(-heaviest // 4, heaviest // 4 + 1, shape, generator=draw)
    values = (weights + noise).clamp(min=1)
    capacity = weights.sum(1) // 2
    return Instances(weights, values, capacity, optimum(weights, values, capacity))


def optimum(weights: Tensor, values: Tensor, capacity: Tensor) -> Tensor:
    """Return the optimal values, (n,), by dynamic programming over capacities.

    table[c] = highest value of weight <= c, item by item:
    table[c] <- max(table[c], table[c - w] + v).
    """
    optima = []
    for w, v, limit in zip(weights.tolist(), values.tolist(), capacity.tolist(), strict=True):
        table = torch.zeros(limit + 1, dtype=torch.long)
        for weight, value in zip(w, v, strict=True):
            if weight <= limit:
                with_item = table[: limit + 1 - weight] + value
                table[weight:] = torch.maximum(table[weight:], with_item)
        optima.append(table[-1])
    return torch.stack(optima)


def empty(instances: Instances) -> Packing:
    """Return empty knapsacks."""
    return Packing(
        torch.zeros_like(instances.weights, dtype=torch.bool), torch.zeros_like(instances.capacity)
    )


def follow(text: str, on: Instances, packing: Packing, moves: int, draw: Generator) -> Packing:
    """Return the packing after `moves` moves, those of the text in turn."""
    words = parse(text)
    packed, best = packing.packed.clone(), packing.best
    for i in range(moves):
        packed = _move(words[i % len(words)], on, packed, draw)
        best = torch.maximum(best, (packed * on.values).sum(1))
    return Packing(packed, best)


def _move(word: str, on: Instances, packed: Tensor, draw: Generator) -> Tensor:
    """Return the packings after one move each; a move without a legal item changes nothing."""
    room = (on.capacity - (packed * on.weights).sum(1))[:, None]
    random = torch.rand(packed.shape, generator=draw)
    density = on.values / on.weights
    addable = ~packed & (on.weights <= room)
    if word == "add":
        return packed ^ _highest(random, addable)
    if word == "drop":
        return packed ^ _highest(random, packed)
    if word == "worst":
        return packed ^ _highest(-density, packed)
    out = _highest(random, packed)
    lighter = on.weights <= room + (out * on.weights).sum(1, keepdim=True)
    dearer = on.values > (out * on.values).sum(1, keepdim=True)
    into = _highest(random, ~packed & lighter & dearer & out.any(1, keepdim=True))
    return torch.where(into.any(1, keepdim=True), packed ^ out ^ into, packed)


def _highest(score: Tensor, legal: Tensor) -> Tensor:
    """Return a mask of the legal item of the highest score in each row, none where none is."""
    index = torch.where(legal, score, -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(legal).scatter(1, index, True) & legal
