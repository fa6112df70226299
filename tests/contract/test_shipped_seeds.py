"""Every problem's YAML with `seeds`: trained together as alone, or refused with a sentence."""

import pytest
from hydra import compose
from omegaconf import OmegaConf
from seeds import assert_as_alone
from small import shrunk

from metaopt import Engine
from metaopt.cli.composing import parts
from metaopt.cli.folders import groups
from metaopt.cli.loading import CONFIG, composing
from metaopt.cli.seeds import with_seeds

OTHER = {"hyper_cleaning": ["inner_steps=1", "optimizer=sgd"]}
"""Not Adam, which makes a step of a slope that is round-off, in single precision."""

TOGETHER = {
    "ridge", "quadratic", "stochastic_quadratic", "value_function_toy", "hyper_cleaning",
    "meta_pseudo_labels", "hyperparameter_optimization", "few_shot", "few_shot/digits",
    "few_shot_ranking", "scheduled_digits",
}  # fmt: skip
LANGUAGE = {f"data_curation/{loss}" for loss in ("dpo", "process_reward", "reward", "sft")}
REFUSED = {
    **dict.fromkeys(LANGUAGE, "read a number off a tensor"),
    "domain_reweighting": "read a number off a tensor",
    "domain_reweighting/digits": "has other losses with seed 1 alone",
    "domain_reweighting/text_world": "Descent cannot train several seeds together",
    "few_shot_ranking/text": "has other losses with seed 1 alone",
    "knapsack": "Knapsack steps and evaluates itself",
    "meta_policy_optimization/text": "MetaPolicyOptimization steps and evaluates itself",
    "metric_induction": "MetricInduction steps and evaluates itself",
    "meta_policy_optimization": "MetaPolicyOptimization steps and evaluates itself",
    "reward_design": "RewardDesign steps and evaluates itself",
    "reward_model": "MetaRewardModel trains 2 replicates in each run already",
    "reward_model/hh_rlhf": "the seed decides how large a tensor is",
    "reward_model/pair_weights": "PreferenceReweighting trains 2 replicates in each run already",
    "reward_model/text": "the seed decides how large a tensor is",
    "rollout_length": "RolloutLength steps and evaluates itself",
    "rollout_length/gymnasium": "RolloutLength steps and evaluates itself",
    "rollout_length/paper": "RolloutLength steps and evaluates itself",
    "surrogate_quadratic": "PopulationScore cannot train several seeds together",
    "agent_programs": "AgentPrograms steps and evaluates itself",
    "template_evolution": "TemplateEvolution steps and evaluates itself",
    "template_evolution/judge_calibration": "JudgeCalibration steps and evaluates itself",
    "tuned_digits": "PopulationScore cannot train several seeds together",
    "reward_design/bank": "RewardBank steps and evaluates itself",
}


def made(name, folder, *overrides):
    with composing():
        own = [*shrunk(name, folder), *OTHER.get(name, []), *overrides]
        config = compose(CONFIG, [f"problem={name}", *own])
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return parts(with_seeds(config, resolved), ("problem", "estimator", "optimizer"))


def test_all_problems_are_listed():
    assert {*TOGETHER, *REFUSED} == {*groups()["problem"]}


LONG = {
    *LANGUAGE, "hyperparameter_optimization", "hyper_cleaning", "domain_reweighting",
    "meta_pseudo_labels", "stochastic_quadratic", "value_function_toy", "few_shot_ranking",
    "few_shot/digits", "scheduled_digits",
}  # fmt: skip


def each(names):
    return [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in sorted(names)]


@pytest.mark.parametrize("name", each(TOGETHER))
def test_a_problem_is_trained_together_as_alone(name, tmp_path):
    def part(kind, seed=0):
        return made(name, tmp_path, f"seed={seed}")[kind]

    assert_as_alone(
        lambda seed: part("problem", seed), lambda: part("estimator"), lambda: part("optimizer"),
        steps=1, rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("name", each(REFUSED))
def test_a_problem_that_cannot_be_is_refused(name, tmp_path):
    parts = made(name, tmp_path, "seeds=2")
    with pytest.raises((TypeError, ValueError), match=REFUSED[name]) as caught:
        Engine(parts["problem"], parts["estimator"], parts["optimizer"], outer_steps=1, seeds=2)
    assert "as a sweep: -m seed=0,1,2" in str(caught.value)
