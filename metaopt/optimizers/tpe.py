"""The tree-structured Parzen estimator as an outer optimizer, by Optuna's sampler."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback
from metaopt.engine.ranges import check_ranges
from metaopt.optimizers.spaces import Choice, Space, Uniform, require_names

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study


class TPE:
    """Propose where good trials are dense and bad ones are not, and keep the best.

    Trials are split at a quantile of their values into good and bad ones, with densities l and u of
    the outer variable; of points drawn from l, the one with the largest l / u is tried. The first
    `startup` trials are random. Every entry of a tensor is a dimension of its own. The sampler is
    that of Optuna 4 or later (`pip install 'metaopt[sweep]'`) with a seed that follows from the
    step's key, so that a search that is resumed goes on to the bit.

    Values are comparable only where every inner run starts alike: use it with problems that do not
    warm-start (`warm_start=false`), and `estimator=score`.

    Args:
        space: `Uniform`, `Choice` or a list of choices; or these by name, where names that are left
            out keep their first value; `None` is uniform within 2 of the first values.
        startup: random trials, >= 1.
        multivariate: whether the densities are of all entries together, not one by one.

    Raises:
        ImportError: Optuna is missing.
        ValueError: from `init`, a space that is none of these (such as `Normal`), or that names
            what the outer variable lacks.

    Cost: each proposal takes milliseconds for each entry.

    Reference: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.

    Example:
        >>> search = TPE(Uniform(-5.0, 5.0))
        >>> search.init(3.0)
        >>> for key in range(40):
        ...     search.tell(Feedback((search.ask(key) - 1.0) ** 2))
        >>> abs(search.solution - 1.0) < 0.5
        True
    """

    keeps_best = True  # so that a candidate that diverged ends no search

    def __init__(
        self, space: Space | None = None, startup: int = 10, multivariate: bool = False
    ) -> None:
        if find_spec("optuna") is None:
            raise ImportError(
                "TPE needs Optuna, which is not installed: pip install 'metaopt[sweep]'."
            )
        self.space, self.startup, self.multivariate = space, startup, multivariate
        check_ranges(self, "startup >= 1", "multivariate")
        self._initial: Any = None
        self._point: list[float] | None = None
        self._points: list[list[float]] = []
        self._values: list[float] = []

    def init(self, outer: Any) -> None:
        """Keep the first outer variable: proposals take its shapes, dtypes and names."""
        if isinstance(self.space, Mapping):
            require_names(outer, self.space, "space")
        self._initial = tree.clone(outer)
        self._point, self._points, self._values = None, [], []
        self._dimensions = [
            self._distribution(name, first)
            for name, like in self._leaves()
            for first in (like.flatten().tolist() if isinstance(like, Tensor) else [like])
        ]

    def ask(self, key: int) -> Any:
        """Return the proposal of this step."""
        from optuna.trial import create_trial

        distributions = {str(i): d for i, d in enumerate(self._dimensions)}
        # A new one each time, so that a proposal is a function of the trials and the key.
        study = self._study(key)
        for point, value in zip(self._points, self._values, strict=True):
            params = dict(zip(distributions, point, strict=True))
            study.add_trial(create_trial(params=params, distributions=distributions, value=value))
        self._point = [*study.ask(distributions).params.values()]
        return self._outer(self._point)

    def tell(self, feedback: Feedback) -> None:
        """Learn the value of the proposal.

        Raises:
            RuntimeError: nothing has been asked for since the last `tell`.
        """
        if self._point is None:
            raise RuntimeError("TPE.tell needs an ask first.")
        self._points.append(self._point)
        self._values.append(float(feedback.value))
        self._point = None

    @property
    def solution(self) -> Any:
        """The best of the proposals so far; the first outer variable before a finite one."""
        best = min(self._values, default=math.inf)
        if best == math.inf:
            return self._initial
        return self._outer(self._points[self._values.index(best)])

    def state_dict(self) -> dict[str, Any]:
        """Return all proposals, as points of the space, and their values."""
        return {"points": [list(p) for p in self._points], "values": list(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._points, self._values = [list(p) for p in state["points"]], list(state["values"])
        self._point = None

    def _study(self, key: int) -> Study:
        """Return an empty study whose sampler draws by the key."""
        import optuna

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would name every study
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = optuna.samplers.TPESampler(
                    n_startup_trials=self.startup, multivariate=self.multivariate,
                    seed=key % 2**32,  # numpy's largest seed has 32 bits
                )  # fmt: skip
                return optuna.create_study(sampler=sampler)
        finally:
            optuna.logging.set_verbosity(verbosity)

    def _leaves(self) -> list[tuple[str | None, Any]]:
        """Return what is searched, with its names."""
        if not isinstance(self._initial, dict):
            return [(None, self._initial)]
        names = self.space if isinstance(self.space, Mapping) else self._initial
        return [(name, self._initial[name]) for name in names]

    def _part(self, name: str | None) -> Any:
        """Return the space of a name; a list is one of choices."""
        part: Any = self.space[name] if isinstance(self.space, Mapping) and name else self.space
        return part if part is None or callable(part) else Choice(part)

    def _distribution(self, name: str | None, first: Any) -> BaseDistribution:
        """Return Optuna's distribution of one entry of a name, which was `first` at the start."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        part = self._part(name)
        if part is None and isinstance(first, float):
            return FloatDistribution(first - 2, first + 2)
        if isinstance(part, Choice):
            return CategoricalDistribution(range(len(part.values)))
        if isinstance(part, Uniform) and part.integer:
            return IntDistribution(int(part.low), int(part.high))
        if isinstance(part, Uniform):
            return FloatDistribution(part.low, part.high, log=part.log)
        where = "" if name is None else f" for {name}"
        raise ValueError(f"TPE needs Uniform, Choice or a list of choices{where}; got {part!r}.")

    def _outer(self, point: Sequence[float]) -> Any:
        """Return the outer variable at a point of the space."""
        values: dict[str | None, Any] = {}
        start = 0
        for name, like in self._leaves():
            entries = point[start : start + _size(like)]
            start += len(entries)
            part = self._part(name)
            if isinstance(part, Choice):
                entries = [part.values[int(e)] for e in entries]
            values[name] = _shaped(like, entries)
        return {**self._initial, **values} if isinstance(self._initial, dict) else values[None]


def _size(like: Any) -> int:
    return like.numel() if isinstance(like, Tensor) else 1


def _shaped(like: Any, numbers: Sequence[Any]) -> Any:
    if not isinstance(like, Tensor):
        return numbers[0]
    return torch.tensor(numbers, dtype=torch.float64).reshape(like.shape).to(like)
