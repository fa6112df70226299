"""The names that the engine looks for on a problem, and what looks like a misspelling of one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

COMMON = frozenset({
    "init_outer", "metrics", "finish", "overhead", "observe", "report", "records", "replicates",
    "resplit", "metric_names", "hooks",
})  # fmt: skip
"""What the engine looks for on every problem."""

BLACK_BOX = frozenset({"init_inner", "inner_step", "evaluate"})
"""What else it looks for on a problem that steps and evaluates itself."""

GRADIENT = frozenset({
    "inner_optimizer", "warm_start", "compute_dtype", "frozen", "hard_decisions", "batched_losses",
    "init_params", "init_buffers", "init_state", "update_state", "inner_batch", "outer_batch",
    "prepare_batch", "inner_loss", "outer_loss", "log_prob", "inner_losses", "feedback_loss",
})  # fmt: skip
"""What else it looks for on a `GradientProblem`, of a `SampledProblem`'s names the last three."""

FINITE = frozenset({
    "inner_batches", "outer_batches", "inner_batch_at", "outer_batch_at", "epoch_seed", "block",
})  # fmt: skip
"""What else it looks for on a `Finite` problem."""

SETTINGS = frozenset({
    "inner_optimizer", "warm_start", "compute_dtype", "frozen", "hard_decisions",
    "batched_losses", "report", "records", "replicates", "resplit",
})  # fmt: skip
"""Those of them that a constructor may set."""

REPORT = frozenset({"snapshot", "figures", "deliver"})
"""What it looks for on a `Report`."""

RECORDS = frozenset({"open", "spent", "close", "authorisation"})
"""What it looks for on `Records`."""

SHORT = 8
"""A shorter name is a near miss at one edit, a longer one at two: `reports` and `resort` are words
of their own."""


@cache
def check_names(kind: type, hooks: frozenset[str]) -> None:
    """Raise a `ValueError` if a class has a public name that is a near miss of a hook's.

    A hook that is misspelt would never be called, and nothing would say so.
    """
    _check(kind.__name__, dir(kind), hooks)


def check_attributes(thing: object) -> None:
    """Raise the same error for an attribute of an object that is a near miss of a setting."""
    _check(type(thing).__name__, vars(thing), SETTINGS)


def _check(kind: str, names: Iterable[str], hooks: frozenset[str]) -> None:
    for name in names:
        if name.startswith("_") or name in hooks:
            continue
        for hook in sorted(hooks):
            most = 1 if len(hook) < SHORT else 2
            if abs(len(name) - len(hook)) <= most and edit_distance(name, hook) <= most:
                raise ValueError(
                    f"{kind}.{name} is never used by metaopt: did you mean {hook}? "
                    f"If not, rename it: a name that looks like {hook} is taken for a misspelling."
                )


def edit_distance(a: str, b: str) -> int:
    """Return how many letters have to be inserted, dropped, replaced or swapped with the next."""
    before, last = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
