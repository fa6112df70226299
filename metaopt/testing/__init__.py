"""Tests that every problem, estimator and outer optimizer must pass, for anyone to subclass.

Needs pytest. Subclass a contract, override its fixture `make`, and pytest runs the whole of it:

    class TestMine(ProblemContract):
        @pytest.fixture
        def make(self):
            return lambda: (MyProblem(), Unroll(5), Descent(partial(torch.optim.Adam, lr=0.1)))
"""

import pytest

pytest.register_assert_rewrite("metaopt.testing.contracts")

from metaopt.testing.contracts import (  # noqa: E402
    EstimatorContract,
    OptimizerContract,
    ProblemContract,
    RunContract,
)

__all__ = ["EstimatorContract", "OptimizerContract", "ProblemContract", "RunContract"]
