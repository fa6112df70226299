"""The two levels of reward design, on episodes of a few steps."""

import io
import json

import pytest
import torch
from small_trainings import small_trainer

from metaopt import Engine, Score, Search
from metaopt.engine.random import fold
from metaopt.environments import CartPole, MountainCar
from metaopt.llm import Client, SimulatedLM
from metaopt.problems.reward_design import RewardDesign
from metaopt.problems.reward_design.demonstrations import demonstrations
from metaopt.problems.reward_design.feedback import Kinds
from metaopt.problems.reward_design.report import _listed
from metaopt.problems.reward_design.tpe import TrajectoryPreference
from metaopt.problems.reward_design.trainer import Trainer

POLE = CartPole(time_limit=12)
"""Random actions often last that long, and often do not."""


def problem_of(answers=None, environment=POLE, **options):
    """Return a problem whose coder writes the answers in turn; a simulated one without any."""
    given = iter(answers or ())
    asked = []

    def answer(role, messages, key):
        asked.append("\n".join(message["content"] for message in messages))
        return f"```reward\n{next(given)}\n```"

    roles = {"coder": SimulatedLM(answer)} if answers is not None else {}
    trainer = options.pop("trainer", None) or small_trainer(environment)
    problem = RewardDesign(trainer, roles=roles, **options)
    problem.asked = asked
    return problem


def search_of(problem, **options):
    return Search(
        problem.propose, accept="archive", archive_size=None,
        **{"screen": problem.screen, "redraws": 3, **options},
    )  # fmt: skip


def engine_of(problem, steps, inner_steps=2, **options):
    return Engine(problem, Score(inner_steps), search_of(problem, **options), outer_steps=steps)


class Table(Trainer):
    """Trains as ever, and says of each reward the success that a table has for it."""

    def conclude(self, run, rewards, number, key):
        run, trainings = super().conclude(run, rewards, number, key)
        return run, [
            training._replace(success=[self.successes[training.reward].pop(0)])
            for training in trainings
        ]


def table_of(**successes):
    trainer = small_trainer(POLE)
    trainer.__class__ = Table
    trainer.successes = {f"{name} := 1": values for name, values in successes.items()}
    return trainer


def state_of(engine):
    buffer = io.BytesIO()
    torch.save(engine.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class TestLevels:
    def test_the_first_reward_is_the_environments_own_and_the_value_its_success(self):
        engine = engine_of(problem_of(), 1)
        (_, feedback), = engine  # fmt: skip
        (training,) = feedback.artifacts
        assert engine.optimizer.solution == training.reward == "survival := 1"
        assert feedback.value == -training.mean_success
        assert feedback.cost["trainings"] == 1
        assert feedback.metrics["reward/return"] == training.curve["length"][-1]

    def test_an_outer_step_costs_what_it_did(self):
        problem = problem_of(["a := p"])
        engine = engine_of(problem, 2, screen=None)
        costs = [feedback.cost for _, feedback in engine]
        learned = 2 * 2 * 64
        greedy = 2 * (2 * 2 + 4) * 12
        for cost in costs:
            assert learned < cost["environment_steps"] <= learned + greedy
            assert cost["trainings"] == 1
        assert [cost["lm_calls"] for cost in costs] == [0, 1]

    def test_each_outer_step_trains_from_scratch_with_new_seeds(self):
        problem = problem_of(["survival := 1", "survival := 1"])
        engine = engine_of(problem, 3, screen=None)
        curves = [feedback.artifacts[0].trajectories.observations for _, feedback in engine]
        assert not torch.equal(curves[0], curves[1])
        assert not torch.equal(curves[1], curves[2])
        assert engine.optimizer.trials[0].evaluations == 3

    def test_the_best_reward_is_trained_again_at_the_end(self):
        trainer = table_of(survival=[0.1], good=[0.9, 0.4], bad=[0.2])
        engine = engine_of(problem_of(["good := 1", "bad := 1"], trainer=trainer), 3, screen=None)
        for _ in engine:
            assert "success" not in engine.problem.metrics("", engine.inner)
        spent = dict(engine.ledger.spent)
        engine.finish()
        assert engine.problem.metrics(engine.optimizer.solution, engine.inner) == {
            "selected_success": 0.9, "success": 0.4, "hacked": 0.0,
        }  # fmt: skip
        assert engine.ledger.spent["trainings"] == spent["trainings"] + 1
        assert engine.ledger.spent["environment_steps"] > spent["environment_steps"] + 256

    @pytest.mark.slow
    def test_a_resumed_run_is_the_same_to_the_bit(self):
        def started():
            problem = problem_of(tpe=TrajectoryPreference(delta=0.5), skill=0.5)
            return engine_of(problem, 4)

        whole, halted, resumed = started(), started(), started()
        logs = [(f.value, dict(f.metrics), dict(f.cost)) for _, f in whole]
        for step, _ in halted:
            if step == 2:
                break
        resumed.load_state_dict(state_of(halted))
        assert [(f.value, dict(f.metrics), dict(f.cost)) for _, f in resumed] == logs[2:]
        for engine in (whole, resumed):
            engine.finish()
        assert resumed.inner["history"] == whole.inner["history"]
        assert resumed.inner["final"].success == whole.inner["final"].success
        assert resumed.ledger.spent == whole.ledger.spent

    def test_a_budget_ends_the_run_after_the_step_that_spends_it(self):
        spent = problem_of(
            ["a := p"] * 9, client=lambda roles: Client(roles, budget={"coder": {"lm_calls": 1}})
        )
        engine = engine_of(spent, 9, screen=None)
        assert len(list(engine)) == 3
        assert "coder" in engine.stopped


class TestTest:
    """What the test on recorded episodes does to a run."""

    first, passing = "life := 1 - terminated", "twice := 2 - terminated"
    inverted = "early := 10 * terminated - 1"

    def started(self, *answers):
        problem = problem_of(
            answers, tpe=TrajectoryPreference(), demonstrations=4, first=self.first
        )
        engine = engine_of(problem, 2)
        steps = iter(engine)
        next(steps)
        return problem, engine, steps

    def test_a_reward_that_fails_is_not_trained_under_and_costs_no_environment_step(self):
        problem, engine, steps = self.started(self.inverted, self.passing)
        _, feedback = next(steps)
        assert feedback.artifacts[0].reward == problem.expression(self.passing).text
        assert len(engine.optimizer.trials) == 2
        assert feedback.metrics["reward/rejected"] == 1
        assert problem.metrics(None, engine.inner)["passed"] == 0.5
        assert feedback.cost["trainings"] == 1
        assert feedback.cost["environment_steps"] <= 256 + 2 * (2 * 2 + 4) * 12
        assert feedback.cost["lm_calls"] == 2

    def test_the_coder_is_told_which_episodes_a_rejected_reward_confuses(self):
        problem, _, steps = self.started(self.inverted, self.passing)
        next(steps)
        first, second = problem.asked
        assert "life := 1" in first
        assert "early := " in second
        assert "rated on recorded episodes" in second
        assert "rated on recorded episodes" not in first

    def test_without_a_screen_it_decides_the_feedback_alone(self):
        problem = problem_of(
            [self.inverted, self.passing],
            tpe=TrajectoryPreference(),
            demonstrations=4,
            first=self.first,
            preference_of_trained=True,
        )
        engine = engine_of(problem, 3, screen=None)
        assert sum(feedback.cost["trainings"] for _, feedback in engine) == 3
        assert "rated on recorded episodes" not in problem.asked[0]
        assert "rated on recorded episodes" in problem.asked[1]

    def test_the_best_is_trained_again_where_all_fail(self):
        problem, _, steps = self.started(*[self.inverted] * 4)
        _, feedback = next(steps)
        assert feedback.metrics["reward/rejected"] == 4
        assert feedback.artifacts[0].reward == problem.first

    def test_compares_what_the_environment_says_unless_it_is_told(self):
        def per(environment, success=None, **options):
            trainer = small_trainer(environment, success=success)
            return RewardDesign(trainer, tpe=TrajectoryPreference(**options)).proposals.gate.per

        assert per(POLE) == "episode"
        assert per(MountainCar()) == "step"
        assert per(POLE, success=9) == "episode"
        assert per(MountainCar(), per="episode") == "episode"

    def test_demonstrations_are_charged_once_and_differ_by_seed(self):
        def costs(count):
            problem = problem_of([self.passing], demonstrations=count, first=self.first, seed=3)
            engine = engine_of(problem, 2, inner_steps=1, screen=None)
            return [feedback.cost["environment_steps"] for _, feedback in engine]

        episodes, steps = demonstrations(POLE, "truncated", 2, fold(3, "demonstrations"))
        (first, second), (charged, later) = costs(0), costs(2)
        assert (charged - first, later) == (steps, second)
        other, _ = demonstrations(POLE, "truncated", 2, fold(4, "demonstrations"))
        assert not torch.equal(episodes.observations, other.observations)


class TestSeveral:
    def test_the_best_of_two_is_filed_with_what_a_fresh_training_gives(self):
        trainer = table_of(survival=[0.3], bad=[0.2], good=[0.9, 0.6, 0.5])
        problem = problem_of(["bad := 1", "good := 1"], trainer=trainer, rewards=2, base="best")
        engine = engine_of(problem, 2)
        feedbacks = [feedback for _, feedback in engine]
        assert feedbacks[1].value == -0.6
        assert [t.reward for t in feedbacks[1].artifacts] == ["good := 1", "bad := 1", "good := 1"]
        assert feedbacks[1].metrics["reward/selected_success"] == 0.9
        assert feedbacks[1].cost["trainings"] == 3
        assert engine.optimizer.solution == ("bad := 1", "good := 1")
        assert problem.winner(engine.optimizer.solution, engine.inner) == "good := 1"
        engine.finish()
        assert problem.metrics(None, engine.inner)["success"] == 0.5
        assert [(entry["number"], entry["success"], remark[3:20]) for entry, remark in
                _listed(engine.inner["history"])] == [
            (1, [0.3], ""), (2, [0.2], ""), (2, [0.9], ""), (2, [0.6], "(the best of thes"),
        ]  # fmt: skip

    @pytest.mark.parametrize(("base", "word"), [("latest", "bad := 1"), ("best", "good := 1")])
    def test_the_coder_builds_on_the_latest_or_the_best(self, base, word):
        trainer = table_of(survival=[0.3], good=[0.9], bad=[0.2], c=[0.5])
        answers = ["good := 1", "bad := 1", "c := 1"]
        problem = problem_of(answers, trainer=trainer, base=base)
        list(engine_of(problem, 4))
        assert f"```reward\n{word}" in problem.asked[2]


class TestReport:
    def test_a_reward_that_is_trained_again_says_why(self):
        entry = {"filed": True, "tested": 0, "passed": 0}
        again = {**entry, "number": 2, "tested": 4}
        remarks = [remark for _, remark in _listed([{**entry, "number": 1}, again])]
        assert remarks == [
            "", "   (the best so far, trained again: 4 in a row failed the test)",
        ]  # fmt: skip

    @pytest.mark.slow
    def test_the_reward_is_delivered_with_all_that_were_tried(self, tmp_path):
        engine = engine_of(problem_of(["a := p2"]), 2, screen=None)
        list(engine)
        engine.finish()
        report, solution = engine.problem.report, engine.optimizer.solution
        text = report.deliver(solution, engine.inner, [], tmp_path)
        winner = engine.problem.winner(solution, engine.inner)
        assert (tmp_path / "reward.txt").read_text() == winner + "\n"
        assert "def step_reward(" in (tmp_path / "reward.py").read_text()
        history = json.loads((tmp_path / "rewards.json").read_text())
        assert [entry["reward"] for entry in history] == ["survival := 1", "a := 1 * p2"]
        for entry in history:
            assert f"{sum(entry['success']) / 2:.2f}   {entry['reward']}" in text
        page = (tmp_path / "report.html").read_text()
        assert "a := 1 * p2" in page
        assert page.count("<img") == 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rewards": 0}, "rewards >= 1; got rewards=0"),
            ({"base": "worst"}, "base to be one of latest, best; got base='worst'"),
            ({"first": "a := height"}, "first='a := height' is no reward. Reward .*`height`"),
            ({"skill": 2.0}, "skill <= 1; got skill="),
            ({"roles": {"judge": SimulatedLM(str)}}, "roles names 'judge'; the only role is coder"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            RewardDesign(small_trainer(POLE), **options)

    def test_no_training(self):
        with pytest.raises(ValueError, match="inner_steps >= 1"):
            list(engine_of(problem_of(), 1, inner_steps=0))


def test_kinds_of_feedback_that_are_not_given_are_not_in_the_question():
    def question(**kinds):
        problem = problem_of(["a := p"], kinds=Kinds(**kinds))
        list(engine_of(problem, 2))
        return problem.asked[0]

    nothing = dict.fromkeys(("process", "trajectory", "preference"), False)
    whole, process, none = question(), question(**{**nothing, "process": True}), question(**nothing)
    assert "Progress of the training" in whole
    assert "Progress of the training" not in none
    assert len(none) < len(process) < len(whole)
