"""Adaptive rollout length: which options are refused, and what the shipped ones say."""

from functools import cache

import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from small_runs import make

from metaopt.cli.loading import composing
from metaopt.problems.rollout_length.planning import Planner


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runs": 0}, "runs >= 1; got runs=0"),
        ({"steps": 250}, "steps divisible by phase"),
        ({"environments": 3}, "phase by environments"),
        ({"error_episodes": 3}, "at least environments=4; got 3"),
        ({"updates_per_step": 0.0}, "updates_per_step > 0"),
        ({"score": "best"}, "one of training, greedy; got score='best'"),
        ({"clip": 0.0}, "clip > 0"),
        ({"training_episodes": -1}, "training_episodes >= 0"),
        ({"first_length": 9}, "first_length in 0..8"),
        ({"planning": "imagined"}, "planning=synthetic, real"),
        ({"planning": ["real", "real", "real"]}, "3 equal groups"),
        ({"groups": ["a"], "planning": ["real", "real"]}, "as many groups"),
        ({"tests": ["heavy"]}, "no variant 'heavy'; its variants are none"),
        ({"tests": []}, "at least one; got \\[\\]"),
        ({"tests": ["default", "default"]}, "different tests"),
        ({"planner": Planner(cap=65)}, "too few for rollouts of cap=65"),
        ({"outer_steps": 10}, "needs outer_steps=5, which .* at most 5 for a trial"),
        ({"outer_steps": 6, "training_episodes": 1}, "needs outer_steps=10, .* got 6"),
        ({"outer_steps": 9, "training_episodes": 1}, "needs outer_steps=10, .* got 9"),
    ],
)
def test_bad_options_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        make(**changes)


def test_trials_and_whole_runs_are_legal():
    for steps in (None, 1, 5, 10, 14):
        assert make(outer_steps=steps, training_episodes=1).outer_steps == 10


class TestShipped:
    """The experiments' YAML, as they are instantiated."""

    @staticmethod
    @cache
    def made(name, method, *more):
        chosen = [f"experiment=rollout_length/{name}", f"method=rollout_length/{method}"]
        with composing():
            config = compose("train", [*chosen, *more])
        return config, instantiate(config.problem, _convert_="all")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["cartpole", "mountain_car", "acrobot"])
    def test_outer_steps_fit_training_and_tests(self, name):
        for method in ("real_extra", "meta_paper"):
            config, problem = self.made(name, method)
            assert config.outer_steps == problem.outer_steps
            assert problem.names == ["default", "perturbed"]
            assert config.label in config.report.methods
        assert config.report.baseline in config.report.methods

    @pytest.mark.parametrize(
        ("name", "decisions", "environment"),
        [("mountain_car", 15, (0.003, -1.1)), ("acrobot", 12, (12.0, 1.2, 1.2, 0.8))],
    )
    def test_the_papers_settings(self, name, decisions, environment):
        config, problem = self.made(name, "meta_paper")
        model, agent = problem.model, problem.agent
        assert problem.decisions == decisions
        assert problem.runs * problem.training_episodes == 2000
        assert (problem.phase, problem.environments, problem.batch) == (10_000, 1, 32)
        assert problem.updates_per_step == problem.planner.ratio == 1
        observed = problem.training.observation_size
        inputs = observed + problem.training.actions
        assert [list(n.sizes) for n in model.networks] == [
            [inputs, 32, 16, observed], [inputs, 64, 32, 1], [inputs, 32, 16, 1],
        ]  # fmt: skip
        assert all(n.normalise for n in model.networks)
        assert (model.adam.lr, model.batch, model.held_out) == (1e-3, 32, 5)
        assert list(agent.mlp.sizes) == [observed, 64, 32, problem.training.actions]
        assert (agent.adam.lr, agent.target_update_every) == (1e-4, 2000)
        assert [problem.exploration(t, 10_000) for t in (9_999, 15_000, 20_000, 90_000)] == (
            pytest.approx([1.0, 0.55, 0.1, 0.1])
        )
        assert problem.training.timeout_is_terminal
        assert problem.first_length == 0
        tested = vars(problem.tested[1])
        for value in environment:
            assert value in tested.values()
        assert instantiate(config.optimizer, _convert_="all").lr == 1e-4

    def test_methods_that_observe_measure_errors(self):
        for method, count in (("constant", 0), ("error_feedback", 4), ("meta_absolute", 4)):
            assert self.made("cartpole", method)[1].error_episodes == count
        assert self.made("acrobot", "meta_paper")[1].error_episodes == 50

    def test_schedules_and_ladders_end_at_the_planners_cap(self):
        for method, expected in (("inc_dec", [0, 12, 0]), ("dec", [12, 6, 0])):
            config, _ = self.made("cartpole", method, "problem.planner.cap=12")
            schedule = instantiate(config.optimizer, _convert_="all")
            assert [schedule.function(x) for x in (0.0, 0.5, 1.0)] == expected
            assert "12" in config.label
        config, problem = self.made("cartpole", "meta_paper", "problem.planner.cap=12")
        ladder = instantiate(config.optimizer, _convert_="all").actions
        assert ladder.cap == problem.planner.cap == 12

    def optimizer(self, method, cap):
        """The optimizer of a method whose problem has this cap."""
        config, _ = self.made("cartpole", method, f"problem.planner.cap={cap}")
        return instantiate(config.optimizer, _convert_="all")

    @pytest.mark.parametrize(
        ("method", "largest"),
        [("mbpo", 15), ("paper_schedule", 32), ("meta_absolute", 32)],
    )
    def test_lengths_above_the_planners_cap_are_refused_before_the_first_step(
        self, method, largest
    ):
        outer = torch.zeros(2, dtype=torch.long)
        self.optimizer(method, largest).init(outer)
        with pytest.raises(Exception, match=f"at most cap={largest - 1}, .*; got {largest}"):
            self.optimizer(method, largest - 1).init(outer)

    def test_rules_that_plan_further_than_the_cap_are_refused(self):
        with pytest.raises(Exception, match=r"ErrorFeedback needs lengths .* cap=15, .*; got 16"):
            self.optimizer("error_feedback", 15)
        assert self.optimizer("constant", 3).cap == 3
        for method in ("dec", "inc", "inc_dec"):
            optimizer = self.optimizer(method, 3)
            optimizer.init(torch.zeros(2, dtype=torch.long))

    def test_batched_schedules_say_which_one_exceeds_the_cap(self):
        with composing():
            config = compose("train", ["problem=rollout_length", "problem.planner.cap=16"])
        problem = instantiate(config.problem, _convert_="all")
        optimizer = instantiate(config.optimizer, _convert_="all")
        with pytest.raises(ValueError, match=r"'K=32': Schedule needs .* cap=16, .*; got 32"):
            optimizer.init(problem.init_outer(None))
