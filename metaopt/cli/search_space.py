"""Which values a search draws from: overrides in hydra's grammar as Optuna's distributions.

| override | distribution |
|---|---|
| `key=interval(1e-3, 1)` | a float, uniform; with `tag(log, ...)` uniform in its logarithm |
| `key=int(interval(1, 64))` | a whole number, both ends included; `tag(log, ...)` likewise |
| `key=range(1, 10, 2)` | one of 1, 3, 5, 7, 9: the end is excluded, as everywhere in hydra |
| `key=a,b`, `key=choice(a, b)` | one of the values, which have no order |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from metaopt.files.errors import ConfigError


def search_space(overrides: Sequence[Override]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Return the overrides with one value, and by key the distribution of each of the others.

    Of several overrides of one key the last one counts.

    Raises:
        ConfigError: a distribution is empty, or nothing is left to search.
    """
    last = {override.get_key_element(): override for override in overrides}
    space = {key: distribution(o) for key, o in last.items() if o.is_sweep_override()}
    if not space:
        raise ConfigError(
            "hydra/sweeper=tune has nothing to search: give a key a range, such as "
            "'outer_lr=tag(log, interval(1e-3, 1e-1))', or several values."
        )
    return [str(o.input_line) for key, o in last.items() if key not in space], space


def distribution(override: Override) -> BaseDistribution:
    """Return the distribution of an override with several values.

    Raises:
        ConfigError: it is empty, not positive on a log scale, or has a tag other than `log`.
    """
    sweep: Any = override.value()
    tags = set(getattr(sweep, "tags", ()))
    log = tags == {"log"}
    try:
        if tags and not log:
            raise ValueError(f"the tag is log; got {', '.join(sorted(tags))}.")
        if isinstance(sweep, IntervalSweep):
            whole = type(sweep.start) is int and type(sweep.end) is int
            kind = IntDistribution if whole else FloatDistribution
            return kind(sweep.start, sweep.end, log=log)
        if isinstance(sweep, RangeSweep):
            return _grid(list(override.sweep_iterator()), sweep.step, log)
        if log:
            raise ValueError("tag(log, ...) is of interval(...) or range(...).")
        texts = override.sweep_string_iterator()
        return CategoricalDistribution(list(dict.fromkeys(texts)))
    except ValueError as error:
        raise ConfigError(f"{override.input_line}: {error}") from error


def _grid(numbers: list[Any], step: Any, log: bool) -> BaseDistribution:
    low, high, step = min(numbers), max(numbers), abs(step)
    if log and step != 1:
        raise ValueError("on a log scale, the step of a range is 1.")
    if all(type(number) is int for number in numbers):
        return IntDistribution(low, high, log=log, step=step)
    # In decimals, since 0.1 + 2 * 0.1 > 0.3 in binary, and the last value would be lost.
    high = float(Decimal(str(low)) + (len(numbers) - 1) * Decimal(str(step)))
    return FloatDistribution(low, high, log=log, step=None if log else step)


def suggest(trial: Trial, key: str, d: BaseDistribution) -> None:
    """Draw a parameter of a trial, unless it has it."""
    if isinstance(d, CategoricalDistribution):
        trial.suggest_categorical(key, d.choices)
    elif isinstance(d, IntDistribution):
        trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
    elif isinstance(d, FloatDistribution):
        trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """Return the overrides that set the parameters of a trial."""
    return [f"{key}={value}" for key, value in params.items()]


def first_of(space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return one value of each distribution."""
    return {
        key: d.choices[0] if isinstance(d, CategoricalDistribution) else d.low
        for key, d in space.items()
    }
