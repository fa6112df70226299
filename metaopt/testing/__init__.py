"""Contracts that every problem, estimator and optimizer must pass; a check of hypergradients.

The contracts need pytest. Subclass one, override its fixture `make`, and pytest runs the whole:

    class TestMine(ProblemContract):
        @pytest.fixture
        def make(self):
            return lambda: (MyProblem(), Unroll(5), Descent(partial(torch.optim.Adam, lr=0.1)))

`check_hypergradient` compares estimators with an exact derivative, on any gradient problem;
`run_differences` differences whole runs, an oracle that shares no code with the estimators.
`check_smoothness` says whether retraining follows a hypergradient over one outer step,
`check_precision` whether the problem's precision is enough for it. `check_retraining` compares what
is said of training examples with training without some of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metaopt.testing.check import Row, check_hypergradient
from metaopt.testing.differences import Differences, run_differences
from metaopt.testing.precision import in_float64
from metaopt.testing.retraining_check import check_retraining
from metaopt.testing.rounding import Precision, check_precision
from metaopt.testing.smoothness import Smoothness, check_smoothness

if TYPE_CHECKING:
    from metaopt.testing.contracts import (
        EstimatorContract,
        OptimizerContract,
        ProblemContract,
        RunContract,
    )

__all__ = [
    "Differences",
    "EstimatorContract",
    "OptimizerContract",
    "Precision",
    "ProblemContract",
    "Row",
    "RunContract",
    "Smoothness",
    "check_hypergradient",
    "check_precision",
    "check_retraining",
    "check_smoothness",
    "in_float64",
    "run_differences",
]


def __getattr__(name: str) -> Any:
    """Import a contract, and with it pytest, when it is first asked for."""
    if not name.endswith("Contract"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite("metaopt.testing.contracts")
    return getattr(import_module("metaopt.testing.contracts"), name)
