"""Every YAML of a problem, an estimator and an optimizer keeps its contract."""

from pathlib import Path

import pytest

from metaopt.testing import EstimatorContract, OptimizerContract, ProblemContract

CONFIGS = Path(__file__).parents[2] / "configs"
GRADIENT_FREE = {"grid", "random", "schedule", "search"}

WORLD = [
    "problem=template_evolution", "inner_steps=2", "problem.task.queries=2", "problem.candidates=4",
    "problem.inherited=2", "problem.new=2", "problem.evidence=8", "optimizer.proposals=2",
]  # fmt: skip
SMALL = {"template_evolution": WORLD}
"""What makes a shipped problem small enough for a run of 40 outer steps."""

CONTEXT = {"rewriting": WORLD}
"""Problems of the optimizers that need one of a kind; the others run on ridge."""


def names(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


class TestProblem(ProblemContract):
    @pytest.fixture(params=names("problem"))
    def make(self, composed, request):
        return composed(f"problem={request.param}", *SMALL.get(request.param, []))


class TestEstimator(EstimatorContract):
    """`score` follows below; `first_order` needs a fork and is in `test_roles.py`."""

    @pytest.fixture(params=sorted({*names("estimator")} - {"first_order", "score"}))
    def make(self, composed, request):
        problem = "meta_pseudo_labels" if request.param == "score_function" else "ridge"
        return composed(f"problem={problem}", f"estimator={request.param}")


class TestScore(EstimatorContract):
    @pytest.fixture(
        params=[
            ["problem=ridge", "optimizer=random"],
            ["problem=knapsack", "problem.recipe=add drop"],
        ]
    )
    def make(self, composed, request):
        return composed("estimator=score", *request.param)


class TestOptimizer(OptimizerContract):
    @pytest.fixture(params=names("optimizer"))
    def make(self, composed, request):
        estimator = "score" if request.param in GRADIENT_FREE else "unroll"
        context = CONTEXT.get(request.param, ["problem=ridge", f"estimator={estimator}"])
        return composed(*context, f"optimizer={request.param}", "outer_steps=4")


class TestSearchOfTexts(OptimizerContract):
    @pytest.fixture(params=["search", "schedule", "random"])
    def make(self, composed, request):
        space = ["optimizer.space=[add, add swap]"] if request.param == "random" else []
        return composed("problem=knapsack", f"optimizer={request.param}", *space)
