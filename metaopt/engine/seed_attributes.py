"""The attributes in which the problems of several seeds differ: stacked, or refused when read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.stacked import stack

_PLAIN = (bool, int, float, complex, str, bytes, set, frozenset, range, torch.dtype, torch.Size)
INSTEAD = "Run the seeds one after the other instead, as a sweep: -m seed=0,1,2"


class SeedAttributeError(ValueError):
    """A loss reads an attribute that differs between seeds and cannot be stacked."""


class SeedAttributes:
    """What the problems of several seeds are, as one problem.

    Args:
        problems: of each seed.

    Attributes:
        stacked: the attributes that differ in the values of their tensors alone, stacked.
        problem: the first problem, whose other attributes that differ raise a `SeedAttributeError`
            when they are read; none of the problems' own where nothing differs.

    Raises:
        ValueError: the problems differ in what the engine reads, such as the inner optimizer.
    """

    def __init__(self, problems: Sequence[GradientProblem]) -> None:
        first = self.problem = problems[0]
        kind = type(first)
        # Copied before a check evaluates anything, which may cache a value of the first seed.
        self._attributes = dict(vars(first))
        self.stacked: dict[str, Any] = {}
        refused = []
        for name in sorted({name for problem in problems for name in vars(problem)}):
            if name.startswith("_constructor"):
                continue
            if any(name not in vars(problem) for problem in problems):
                self._attributes.pop(name, None)
                if not isinstance(getattr(kind, name, None), cached_property):
                    refused.append(name)
                continue
            values = [vars(problem)[name] for problem in problems]
            if any(differ(values[0], value) for value in values):
                refused.append(name)
            elif not all(equal(value, values[0]) for value in values):
                try:
                    self.stacked[name] = stack(values)
                except (RuntimeError, ValueError):  # of several shapes
                    refused.append(name)
        for name in refused:
            if name == "inner_optimizer" or hasattr(GradientProblem, name):
                raise ValueError(
                    f"{kind.__name__}.{name} differs between seeds, and is one for all seeds that "
                    f"are trained together. {INSTEAD}"
                )
        if refused:
            guards = {name: _guard(kind.__name__, name) for name in refused}
            names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
            self._kind = type(kind.__name__, (kind,), {**guards, **names})
            self.problem = self.with_values({})
        else:
            self._kind = kind

    def with_values(self, values: dict[str, Any]) -> GradientProblem:
        """Return the problem with attributes in the place of the stacked ones."""
        # Not by copy.copy, which calls the checks of `__new__` again.
        problem: GradientProblem = object.__new__(self._kind)
        vars(problem).update(self._attributes, **values)
        return problem


def _guard(kind: str, name: str) -> property:
    def read(problem: Any) -> Any:
        raise SeedAttributeError(
            f"a loss or the inner optimizer of {kind} reads the attribute {name!r}, which differs "
            f"between seeds and is no tensor of one shape and no tuple, list or dict of such. "
            f"Make it a tensor, or return it in the batch. {INSTEAD}"
        )

    # A property comes before the instance's own value, also where the class has a default.
    return property(read)


def differ(a: Any, b: Any) -> bool:
    """Return whether two values differ in more than their tensors, as far as can be compared.

    Numbers, strings, and what is made of them are; objects of other classes are not.
    """
    if a is b:
        return False
    if type(a) is not type(b):
        return True
    if isinstance(a, dict):
        return a.keys() != b.keys() or any(differ(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and not isinstance(a, torch.Size):
        return len(a) != len(b) or any(map(differ, a, b))
    if dataclasses.is_dataclass(a):
        names = (field.name for field in dataclasses.fields(a))
        return any(differ(getattr(a, n, None), getattr(b, n, None)) for n in names)
    return isinstance(a, _PLAIN) and bool(a != b) and bool(a == a or b == b)


def equal(a: Any, b: Any) -> bool:
    """Return whether two trees have the same tensors, in value."""
    if a is b:
        return True
    pairs = list(zip(tree.tensors(a), tree.tensors(b), strict=False))
    count = sum(1 for _ in tree.tensors(b))
    return len(pairs) == count and all(x is y or torch.equal(x, y) for x, y in pairs)
