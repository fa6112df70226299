"""Ranges of numbers, checked as they are printed, and choices among names."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from metaopt.engine.annotations import describe, fits, hints

_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def check_ranges(owner: object, *ranges: str) -> None:
    """Raise a `ValueError` unless the attributes of `owner` have their types and ranges.

    The types are those that the constructor is annotated with; where there is no annotation, a
    finite number is asked for.

    Example:
        check_ranges(self, "seed", "lr >= 0", "0 <= warmup < total", "clip_norm > 0 or null")

    Args:
        owner: an object whose constructor has set its arguments as attributes; its class is named
            in the message.
        ranges: comparisons of attributes and numbers, separated by spaces, or the name of one
            attribute; `or null` at the end accepts `None` as well.
    """
    kind: Any = type(owner)
    for text in ranges:
        comparison = text.removesuffix(" or null")
        terms = comparison.split()
        values = {term: getattr(owner, term) for term in terms[::2] if term.isidentifier()}
        if comparison != text and any(value is None for value in values.values()):
            continue
        for name, value in values.items():
            hint = hints(kind).get(name, float)
            if value is None or not fits(value, hint):
                legal = describe(hint) if len(terms) == 1 else f"{describe(hint)}, {text}"
                raise ValueError(
                    f"{kind.__name__} needs {name} to be {legal}; got {_said(values)}."
                )
        operands = [values[term] if term in values else float(term) for term in terms[::2]]
        pairs = zip(operands, terms[1::2], operands[1:], strict=False)
        if not all(_COMPARISONS[sign](left, right) for left, sign, right in pairs):
            raise ValueError(f"{kind.__name__} needs {text}; got {_said(values)}.")


def _said(values: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def check_choices(owner: object, **choices: Sequence[object]) -> None:
    """Raise a `ValueError` unless each attribute of `owner` is one of its choices.

    Example:
        check_choices(self, deploy=("theta", "theta_prime"), initial=("ones", None))

    Args:
        owner: an object whose constructor has set its arguments as attributes; its class is named
            in the message.
        choices: what is legal, by attribute.
    """
    for name, legal in choices.items():
        value = getattr(owner, name)
        if value not in legal:
            listed = ", ".join("null" if option is None else str(option) for option in legal)
            raise ValueError(
                f"{type(owner).__name__} needs {name} to be one of {listed}; got {name}={value!r}."
            )
