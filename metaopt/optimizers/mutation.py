"""Mutation of an outer variable: Gaussian noise, edits of a text, another choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.engine.random import generator
from metaopt.engine.ranges import check_ranges
from metaopt.optimizers.search import PureProposer, Trial
from metaopt.optimizers.spaces import require_names


class Mutation(PureProposer):
    """Change one parent, drawn with equal probability from those given.

    By the parent's kind: floating-point tensors and numbers get `scale` times standard normal
    noise; a text gets `edits` edits, each an insertion, a deletion, a replacement or an exchange
    of phrases; what `choices` lists changes to another of its values. In an outer variable with
    names, entries with choices change by choice, and texts without a vocabulary stay.

    Args:
        scale: standard deviation of the noise, >= 0, in units of the outer variable.
        vocabulary: phrases that an insertion or a replacement draws from.
        choices: legal values of the whole outer variable (a list), or lists by name, or `None`;
            each named entry changes with probability `rate`, and at least one of them does.
        edits: edits of a text, >= 1.
        separator: what stands between the phrases of a text; it may not occur within a phrase.
        rate: see `choices`, 0 <= rate <= 1.

    Raises:
        ValueError: an argument outside its range, or a phrase that contains the separator.
    """

    def __init__(
        self,
        scale: float = 0.1,
        vocabulary: Sequence[str] = (),
        choices: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
        edits: int = 1,
        separator: str = " ",
        rate: float = 0.0,
    ) -> None:
        bad = [p for p in vocabulary if not separator or not p or separator in p]
        if bad:
            raise ValueError(f"Mutation needs phrases without the separator; got {bad}.")
        self.scale, self.vocabulary, self.choices = scale, list(vocabulary), choices
        self.edits, self.separator, self.rate = edits, separator, rate
        check_ranges(self, "scale >= 0", "edits >= 1", "0 <= rate <= 1")

    def __call__(self, parents: Sequence[Trial], key: int) -> Any:
        """Return a changed copy of one parent."""
        draw = generator(key)
        outer = parents[_index(len(parents), draw)].outer
        if isinstance(outer, dict):
            return self._entries(outer, draw)
        if self.choices and not isinstance(self.choices, Mapping):
            return _other(outer, self.choices, draw)
        return self._one(outer, draw)

    def _entries(self, outer: dict[str, Any], draw: Generator) -> dict[str, Any]:
        choices = self.choices if isinstance(self.choices, Mapping) else {}
        require_names(outer, choices, "choices")
        chosen = [n for n in choices if float(torch.rand((), generator=draw)) < self.rate]
        if choices and not chosen:
            chosen = [list(choices)[_index(len(choices), draw)]]
        changed = {}
        for name, value in outer.items():
            if name in chosen:
                changed[name] = _other(value, choices[name], draw)
            elif name in choices or (isinstance(value, str) and not self.vocabulary):
                changed[name] = value
            else:
                changed[name] = self._one(value, draw)
        return changed

    def _one(self, value: Any, draw: Generator) -> Any:
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                return value.clone()
            noise = torch.randn(value.shape, generator=draw, dtype=value.dtype)
            return value + self.scale * noise.to(value.device)
        if isinstance(value, float):
            return value + self.scale * float(torch.randn((), generator=draw, dtype=torch.float64))
        if isinstance(value, str) and self.vocabulary:
            phrases = value.split(self.separator)
            for _ in range(self.edits):
                phrases = self._edit(phrases, draw)
            return self.separator.join(phrases)
        raise TypeError(
            f"Mutation does not know how to change {value!r}: give `vocabulary` for a text, "
            f"`choices` for anything else."
        )

    def _edit(self, phrases: list[str], draw: Generator) -> list[str]:
        """Return the phrases after one edit; the last phrase is never deleted."""
        kinds = ["insert", "replace", *(["delete", "exchange"] if len(phrases) > 1 else [])]
        kind = kinds[_index(len(kinds), draw)]
        i = _index(len(phrases) + (kind == "insert"), draw)
        if kind == "delete":
            return phrases[:i] + phrases[i + 1 :]
        if kind == "exchange":
            j = _index(len(phrases), draw)
            swapped = list(phrases)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            return swapped
        phrase = self.vocabulary[_index(len(self.vocabulary), draw)]
        return [*phrases[:i], phrase, *phrases[i + (kind == "replace") :]]


def _index(size: int, draw: Generator) -> int:
    return int(torch.randint(size, (), generator=draw))


def _other(value: Any, values: Sequence[Any], draw: Generator) -> Any:
    """Return one of `values` that differs from `value`, or `value` when there is none."""
    others = [v for v in values if v != value]
    return others[_index(len(others), draw)] if others else value
