"""Every YAML of a problem, an estimator and an optimizer keeps its contract."""

from pathlib import Path

import pytest
from small import REWEIGHTING, shrunk, verdicts

from metaopt import Engine
from metaopt.cli.folders import groups
from metaopt.testing import EstimatorContract, OptimizerContract, ProblemContract

CONFIGS = Path(__file__).parents[2] / "configs"
GRADIENT_FREE = {"grid", "random", "schedule", "search", "tpe"}
ESTIMATOR = {**dict.fromkeys(GRADIENT_FREE, "score"), "population_based": "population_score"}
"""Of the optimizers that need a certain one."""

OF_ESTIMATOR = {
    "score_function": "meta_pseudo_labels", "saba": "stochastic_quadratic",
    "srba": "stochastic_quadratic",
}  # fmt: skip
"""Problems of the estimators that need one of a kind; the others run on ridge."""

RULES = tuple(
    f"rollout_length/{o}" for o in ("error_feedback", "linear", "random_walk", "vectorized")
)
SLOW = (*RULES, "reward_design/rewriting", "tpe")
"""On the problem that they are for; `TestProblem` and `test_dqn.py` run them or their like."""

VARIANTS = (
    "reward_model/hh_rlhf", "reward_model/pair_weights", "reward_model/text", "data_curation/dpo",
    "data_curation/reward", "data_curation/process_reward", "data_curation/sft",
    "domain_reweighting/text_world", "meta_policy_optimization/text", "stochastic_quadratic",
    "reward_design/bank", "value_function_toy", "hyperparameter_optimization", "scheduled_digits",
    "few_shot_ranking/text",
)  # fmt: skip
"""Slow; their like is run: `reward_model`, `domain_reweighting`, `meta_policy_optimization`, `saba`
on the stochastic quadratic, `quadratic`, `ridge`, `tuned_digits`,
`few_shot_ranking`."""

FORKS = ("first_order", "reptile")
SETTINGS = ("amigo", "f2sa", "ma_soba", "srba", "stocbio")
"""Slow; their like is run: `implicit`, `penalty`, `soba`, `saba`."""


def marked(group, slow):
    return [pytest.param(x, marks=pytest.mark.slow) if x in slow else x for x in group]


CONTEXT = {
    "mirror": "domain_reweighting",
    "template_evolution/rewriting": "template_evolution",
    "meta_policy_optimization/rewriting": "meta_policy_optimization",
    "metric_induction/rewriting": "metric_induction",
    "reward_design/rewriting": "reward_design",
    "agent_programs/rewriting": "agent_programs",
    **dict.fromkeys(("rollout_length/dqn", *RULES), "rollout_length"),
}
"""Problems of the optimizers that need one of a kind; the others run on ridge."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One folder for all, so that a config that names it is composed once."""
    return tmp_path_factory.mktemp("data")


def names(group):
    return sorted(groups()[group])


class TestProblem(ProblemContract):
    """`rollout_length/paper` and `/gymnasium` are `rollout_length` with other numbers."""

    falling_steps = 20

    @pytest.fixture(
        params=marked(
            sorted({*names("problem")} - {"rollout_length/paper", "rollout_length/gymnasium"}),
            VARIANTS,
        )
    )
    def make(self, composed, request, folder):
        small = shrunk(request.param, folder)
        if request.param == "domain_reweighting":  # of which a model learns in few steps
            small = [*REWEIGHTING, *verdicts(folder)]
        if request.param == "quadratic":  # rises first, as its inner level follows
            request.instance.falling_steps = 40
        if request.param == "reward_design/bank" and "falls" in request.node.name:
            pytest.skip("its outer variable stays as it is: all rewards of the bank")
        return composed(f"problem={request.param}", *small)


class TestEstimator(EstimatorContract):
    """Those without a gradient follow below; those that fork are in `test_roles.py`."""

    @pytest.fixture(
        params=marked(
            sorted({*names("estimator")} - {*FORKS, "score", "population_score"}), SETTINGS
        )
    )
    def make(self, composed, request):
        problem = OF_ESTIMATOR.get(request.param, "ridge")
        small = shrunk(problem, None)
        return composed(f"problem={problem}", f"estimator={request.param}", *small)


class TestScore(EstimatorContract):
    @pytest.fixture(
        params=[
            ["problem=ridge", "optimizer=random"],
            ["problem=knapsack", "problem.recipe=add drop"],
        ]
    )
    def make(self, composed, request):
        return composed("estimator=score", *request.param)


class TestPopulationScore(EstimatorContract):
    @pytest.fixture
    def make(self, composed):
        parts = ["estimator=population_score", "optimizer=population_based", "optimizer.members=5"]
        return composed("problem=ridge", *parts)


class TestOptimizer(OptimizerContract):
    @pytest.fixture(params=marked(names("optimizer"), SLOW))
    def make(self, composed, request, folder):
        problem = CONTEXT.get(request.param, "ridge")
        estimator = ESTIMATOR.get(request.param, "unroll" if problem == "ridge" else "score")
        small = shrunk(problem, folder)
        if problem == "domain_reweighting":  # with files, which are faster than what it generates
            small = [*REWEIGHTING, *verdicts(folder)]
        parts = [f"problem={problem}", f"estimator={estimator}", *small]
        parts += [f"optimizer={request.param}", "outer_steps=4"]
        if request.param == "mirror":
            parts += ["estimator=finite_difference", "problem.weights.link=simplex"]
        if (
            request.param == "rollout_length/dqn"
        ):  # in the middle of its training, as is asserted below
            parts += ["outer_steps=3", "problem.training_episodes=9", "optimizer.batch=4"]
        return composed(*parts)

    @pytest.mark.parametrize("make", ["rollout_length/dqn"], indirect=True)
    def test_a_learner_learns(self, make):
        engine = Engine(*make(), outer_steps=2 * self.outer_steps)
        assert len(list(engine)) == 2 * self.outer_steps
        state = engine.optimizer.state_dict()
        assert state["finished"] > 0
        assert len(state["replay"]["rows"]) > 0


@pytest.mark.slow
class TestSearchOfTexts(OptimizerContract):
    @pytest.fixture(params=["search", "schedule", "random"])
    def make(self, composed, request):
        space = ["optimizer.space=[add, add swap]"] if request.param == "random" else []
        return composed("problem=knapsack", f"optimizer={request.param}", *space)
