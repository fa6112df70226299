"""Adaptive rollout length: what planning may touch, what an episode is, what it reports."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from hydra import compose
from hydra.utils import instantiate

from metaopt import tree
from metaopt.cli.composing import composing
from metaopt.core import Delivering
from metaopt.data.environments import CartPole, GymnasiumVector, MountainCar
from metaopt.engine import Engine
from metaopt.estimators import Score
from metaopt.models.q_network import QNetwork
from metaopt.models.transitions import unpack
from metaopt.models.world_model import WorldModel
from metaopt.optimizers import Constant, Linear, Recorded, Schedule
from metaopt.problems.rollout_length import RolloutLength
from metaopt.problems.rollout_length_evaluation import Finished, greedy_return, model_errors
from metaopt.problems.rollout_length_figures import listing, summary, write_tables
from metaopt.problems.rollout_length_options import Exploration, Rows
from metaopt.problems.rollout_length_planning import Planner, Planning, plan
from metaopt.random import generator
from metaopt.testing import ProblemContract
from metaopt.testing.trees import identical

NEVER = 1 - 1e-12
"""A predicted probability of an end that is not reached."""


def make(environment=None, **changes):
    options = {
        "runs": 4, "steps": 256, "phase": 64, "environments": 4, "evaluation_episodes": 3,
        "planner": Planner(cap=8, end_probability=NEVER), "exploration": Exploration(last=0.2),
    }  # fmt: skip
    return RolloutLength(
        environment or CartPole(time_limit=60),
        partial(QNetwork, widths=(12, 8), target_every=20),
        partial(WorldModel, widths=(12, 8), steps=15),
        **{**options, **changes},
    )


LIGHT = CartPole(time_limit=60, variants={"light": {"gravity": 1.0}})


def played(problem, lengths=0, steps=1):
    """The runs after some outer steps with the same lengths."""
    inner = problem.init_inner(lengths, None, 1)
    for key in range(steps):
        inner = problem.inner_step(lengths, inner, key)
    return inner


def planned(problem, inner, lengths, key=7, batch=32):
    """A copy of the runs after planning, and what was planned."""
    inner = tree.clone(inner)
    at, imagined = problem.agent.open(inner.agent), problem.model.open(inner.model)
    first = problem.decisions * problem.acting.phase
    on = Planning(problem.agent, at, problem.model, imagined, inner.rows, inner.size, first)
    lengths = torch.as_tensor(lengths)
    rate = problem.acting.updates_per_step
    found = plan(
        problem.planner,
        on,
        lengths,
        problem.replay,
        problem.acting.phase,
        batch,
        rate,
        generator(key),
    )
    return inner, found


class TestContract(ProblemContract):
    """The contract on a problem small enough to learn in two seconds."""

    outer_steps = 2
    falling_steps = 11

    @pytest.fixture
    def make(self):
        def parts():
            problem = RolloutLength(
                CartPole(time_limit=100),
                partial(QNetwork, widths=(32, 32), target_every=50, lr=3e-3),
                partial(WorldModel, widths=(12, 8), steps=15), runs=4, steps=1600, phase=160,
                updates_per_step=0.5, planner=Planner(cap=8), evaluation_episodes=10,
                error_episodes=0,
            )  # fmt: skip
            return problem, Score(1), Schedule(Constant(2))

        return parts


class TestPlanning:
    def test_synthetic_steps_are_the_same_for_every_length(self):
        """M rollouts of K steps make S = P steps, where K divides what a slot makes."""
        problem = make()
        lengths = [1, 2, 4, 8]
        _, found = planned(problem, played(problem), lengths)
        assert found.steps.tolist() == [64] * 4
        assert found.rollouts.tolist() == [64 // k for k in lengths]
        assert found.updates.tolist() == [16] * 4

    @pytest.mark.parametrize(("ratio", "slots"), [(1.0, 5), (2.5, None), (0.3, 1)])
    def test_synthetic_steps_where_nothing_divides(self, ratio, slots):
        problem = make(planner=Planner(cap=8, ratio=ratio, slots=slots, end_probability=NEVER))
        _, found = planned(problem, played(problem), [1, 3, 5, 7])
        steps = round(64 * ratio)
        assert found.steps.tolist() == [steps] * 4
        side = problem.planner.side_by_side(64)
        shares = [len(range(i, steps, side)) for i in range(side)]
        assert found.rollouts.tolist() == [sum(-(-n // k) for n in shares) for k in (1, 3, 5, 7)]
        assert found.updates.tolist() == [steps // 4] * 4

    def test_each_run_has_its_own_length(self):
        problem = make()
        for lengths in ([1, 3, 7, 8], [8, 0, 2, 5]):
            _, found = planned(problem, played(problem), lengths)
            assert found.longest.tolist() == lengths

    def test_predicted_ends_cut_rollouts_and_others_follow(self):
        problem = make(planner=Planner(cap=8, end_probability=1e-9))
        _, found = planned(problem, played(problem), [8, 8, 8, 8])
        assert found.longest.tolist() == [1] * 4
        assert found.rollouts.tolist() == found.steps.tolist() == [64] * 4

    def test_length_zero_plans_nothing(self):
        """Parameters, target and Adam's moments of such a run stay as they are, to the bit."""
        problem = make()
        before = played(problem)
        after, found = planned(problem, before, [0, 4, 0, 4])
        assert found.steps.tolist() == [0, 64, 0, 64]
        assert found.updates.tolist() == [0, 16, 0, 16]
        old = [before.agent.params, before.agent.target, *before.agent.moments]
        new = [after.agent.params, after.agent.target, *after.agent.moments]
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a[[0, 2]], b[[0, 2]])
        for a, b in ((old[0], new[0]), (old[2], new[2])):
            assert bool((a != b).any(1)[[1, 3]].all())
        assert torch.equal(after.agent.moments.steps - before.agent.moments.steps,
                           torch.tensor([[0.0], [16.0], [0.0], [16.0]]))  # fmt: skip

    def test_without_any_length_nothing_is_touched(self):
        problem = make()
        before = played(problem)
        after, found = planned(problem, before, [0] * 4)
        assert identical(after, before)
        assert not any(bool(t.any()) for t in found)

    def test_rollouts_start_at_real_observations_and_go_on_from_predictions(self):
        problem = make()
        before = played(problem)
        lengths = [1, 2, 4, 8]
        after, _ = planned(problem, before, lengths)
        side = problem.planner.side_by_side(64)
        made = unpack(after.rows[:, 256 : 256 + 64])
        seen = made.observation.view(4, 64 // side, side, 4)
        ends = made.next_observation.view(4, 64 // side, side, 4)
        real = unpack(before.rows[:, :64]).observation
        for run, k in enumerate(lengths):
            for i in range(64 // side):
                for slot in range(side):
                    if i % k:
                        assert torch.equal(seen[run, i, slot], ends[run, i - 1, slot])
                    else:
                        assert bool((real[run] == seen[run, i, slot]).all(1).any())

    def test_updates_read_this_phases_synthetic_rows_only(self):
        """Poisoned rewards of real rows and rows of an earlier phase are never read."""
        problem = make()
        before = played(problem)
        before.rows[:, :64, -3] = torch.nan
        before.rows[:, 256:] = torch.nan
        after, _ = planned(problem, before, [1, 2, 4, 8])
        assert bool(torch.isfinite(after.agent.params).all())

    def test_real_planning_reads_real_rows_only(self):
        problem = make(planning="real")
        before = played(problem)
        before.rows[:, 64:] = torch.nan
        after, found = planned(problem, before, [0] * 4)
        assert found.updates.tolist() == [16] * 4
        assert not bool(found.steps.any())
        assert bool(torch.isfinite(after.agent.params).all())
        assert bool((after.agent.params != before.agent.params).any(1).all())

    def test_rows_may_plan_differently(self):
        problem = make(rows=["a", "b"], planning=["synthetic", "real"])
        inner = played(problem, 4, 2)
        assert inner.planned.steps.tolist() == [64, 64, 0, 0]
        assert inner.planned.updates.tolist() == [16] * 4
        assert inner.length.tolist() == [4, 4, 0, 0]

    def test_a_run_does_not_see_the_lengths_of_others(self):
        problem = make()
        lengths = [torch.tensor(k) for k in ([2, 8, 1, 4], [2, 1, 3, 7])]
        first, second = (played(problem, k, 4) for k in lengths)
        for a, b in zip(first.agent[:2], second.agent[:2], strict=True):
            assert torch.equal(a[0], b[0])
            assert not torch.equal(a[1], b[1])


class TestEpisode:
    def run(self, problem, steps=None, lengths=2):
        optimizer = Schedule(Constant(lengths))
        engine = Engine(problem, Score(1), optimizer, outer_steps=steps or problem.outer_steps)
        return engine, [feedback for _, feedback in engine]

    def test_rewards_add_up_to_what_was_gained(self):
        for score in ("training", "greedy"):
            problem = make(score=score)
            _, feedback = self.run(problem)
            seen = [f.observation for f in feedback]
            assert [s["step"] for s in seen] == [0, 1, 2, 3, 4]
            assert [s["done"] for s in seen] == [False] * 4 + [True]
            assert not bool(seen[0]["reward"].any())
            for before, after in pairwise(seen):
                torch.testing.assert_close(after["score"] - before["score"], after["reward"])
            total = torch.stack([s["reward"] for s in seen]).sum(0)
            torch.testing.assert_close(total, seen[-1]["score"] - seen[0]["score"])
            assert [float(f.value) for f in feedback] == [-float(s["reward"].mean()) for s in seen]
            assert all(not f.done for f in feedback)

    def test_training_comes_before_the_tests(self):
        problem = make(
            LIGHT, training_episodes=2, tests=["default", "light"], runs=2, error_episodes=0
        )
        assert problem.outer_steps == 4 * 5
        engine, feedback = self.run(problem)
        assert [f.observation["test"] for f in feedback] == [False] * 10 + [True] * 10
        assert [problem._environment(i).gravity for i in range(6)] == [9.8, 9.8, 9.8, 1.0, 1.0, 1.0]
        assert set(engine.metrics()) == {
            f"eval/{k}{suffix}{se}"
            for k in ("return", "auc") for suffix in ("", "_light") for se in ("", "_se")
        }  # fmt: skip

    def test_metrics_are_those_of_the_tests_that_are_over(self):
        problem = make(LIGHT, tests=["default", "light"])
        engine, feedback = self.run(problem, steps=9)
        scores = torch.stack([f.observation["score"] for f in feedback[:5]], 1).double()
        found = engine.metrics()
        assert set(found) == {"eval/return", "eval/return_se", "eval/auc", "eval/auc_se"}
        assert found["eval/return"] == pytest.approx(float(scores[:, 4].mean()))
        assert found["eval/return_se"] == pytest.approx(float(scores[:, 4].std() / 2))
        assert found["eval/auc"] == pytest.approx(float(scores[:, :4].mean()))

    def test_tests_have_physics_of_their_own(self):
        """A cart that cannot be moved: every pole falls, whatever the policy."""
        task = CartPole(time_limit=60, variants={"stuck": {"force": 1e-9, "gravity": 30.0}})
        engine, _ = self.run(make(task, tests=["default", "stuck"], evaluation_episodes=100))
        falls = engine.inner.records.scores[1, :, -1]
        draw = generator(0)
        stuck = CartPole(force=1e-9, gravity=30.0, time_limit=60)
        episodes, lengths = stuck.begin((500,), draw, torch.float32), []
        for _ in range(60):
            episodes, taken = stuck.step(episodes, torch.zeros(500, dtype=torch.long), draw)
            lengths.append(taken.age[taken.terminated])
        lengths = torch.cat(lengths).double()
        assert float(falls.mean()) == pytest.approx(float(lengths.mean()), rel=0.05)

    def test_first_decision_starts_from_the_first_length(self):
        problem = make(first_length=3, rows=["a", "b"], planning=["synthetic", "real"])
        assert problem.init_outer(generator(0)).tolist() == [3] * 4
        _, feedback = self.run(problem, steps=1)
        assert feedback[0].observation["length"].tolist() == [3, 3, 0, 0]

    def test_new_runs_begin_with_each_episode(self):
        problem = make()
        engine, _ = self.run(problem, steps=6)
        assert (engine.inner.episode, engine.inner.step) == (1, 0)
        assert engine.inner.size.flatten().tolist() == [64] * 4
        assert engine.inner.agent.moments.steps.flatten().tolist() == [9] * 4

    def test_costs(self):
        """Updates begin once a batch is there: after 32 of 64 steps, a quarter update a step."""
        problem = make()
        engine, feedback = self.run(problem)
        costs = [(f.cost["environment_steps"], f.cost["gradients"]) for f in feedback]
        assert costs == [(256, 4 * 9), *[(256, 4 * 32)] * 3, (0, 4 * 16)]
        assert engine.inner.updates.tolist() == [9 + 3 * 32 + 16] * 4

    def test_schedules_reach_the_runs(self):
        task = CartPole(time_limit=60, variants={"again": {}})
        problem = make(task, tests=["default", "again"])
        schedule = Schedule(Linear([[0, 8], [1, 0]], integer=True), relative=True)
        engine = Engine(problem, Score(1), schedule, outer_steps=problem.outer_steps)
        assert len(list(engine)) == 10
        for test in engine.inner.records.lengths:
            assert test.tolist() == [[8, 5, 3, 0]] * 4

    def test_features(self):
        problem = make(clip=None)
        engine, feedback = self.run(problem, lengths=6)
        for step, f in enumerate(feedback):
            seen = f.observation
            state = seen["state"]
            assert state.shape == (4, 5)
            remains = 1 - min(step + 1, 4) / 4
            assert state[:, 0].tolist() == pytest.approx([remains] * 4)
            assert state[:, 1].tolist() == pytest.approx([0 if step == 0 else 6 / 8] * 4)
            torch.testing.assert_close(state[:, 2], seen["score"] / 60)
        torch.testing.assert_close(state[:, 3:], engine.inner.errors / 60)
        assert bool(engine.inner.errors.any(1).all())
        clipped, _ = self.run(make(clip=1e-3), lengths=6)
        seen = clipped.problem.evaluate(0, clipped.inner, 0).observation["state"]
        assert float(seen.abs().max()) <= 1e-3 + 1e-9

    def test_stored_rows_are_what_happened(self):
        """Rows chain into episodes; time-outs are not stored as ends."""
        problem = make(CartPole(time_limit=12), scaled=False)
        inner = played(problem, 0, 4)
        rows = unpack(inner.rows[:, :256])
        flat = rows._replace(
            observation=rows.observation.view(4, 64, 4, 4),
            next_observation=rows.next_observation.view(4, 64, 4, 4),
            terminal=rows.terminal.view(4, 64, 4),
            action=rows.action.view(4, 64, 4),
        )
        after, _, ends = CartPole().advance(flat.observation, flat.action)
        torch.testing.assert_close(after, flat.next_observation)
        assert torch.equal(ends.float(), flat.terminal)
        follows = (flat.observation[:, 1:] == flat.next_observation[:, :-1]).all(-1)
        fresh = (flat.observation[:, 1:].abs() <= 0.05).all(-1)
        timed_out = ~follows & (flat.terminal[:, :-1] == 0)
        assert bool(timed_out.any())
        assert bool((follows | fresh).all())
        assert bool((~follows)[flat.terminal[:, :-1] == 1].all())

    def test_gymnasiums_resets_are_not_stored(self):
        gymnasium = pytest.importorskip("gymnasium", reason="needs the extra rl")
        vector = GymnasiumVector(
            lambda n: gymnasium.make_vec("CartPole-v1", n), time_limit=500, worst=0.0
        )
        problem = make(vector, runs=2, evaluation_episodes=2, scaled=False)
        _, feedback = self.run(problem, steps=4)
        inner = played(problem, 3, 4)
        sizes = inner.size.flatten().tolist()
        assert all(200 < n < 256 for n in sizes)
        for run, n in enumerate(sizes):
            rows = unpack(inner.rows[run : run + 1, :n])
            after, _, ends = CartPole().advance(rows.observation, rows.action)
            torch.testing.assert_close(after, rows.next_observation, rtol=1e-4, atol=1e-5)
            assert torch.equal(ends.float(), rows.terminal)
            assert not bool(inner.rows[run, n:256].any())
        assert all(bool(torch.isfinite(f.observation["state"]).all()) for f in feedback)


class TestMeasures:
    def test_finished_episodes(self):
        """Counts, totals and the last m episodes of each run, against lists."""
        task, draw = CartPole(time_limit=25), generator(0)
        episodes = task.begin((3, 4), draw, torch.float32)
        finished = Finished.none(3, 5, 4, torch.zeros(()))
        listed = [[] for _ in range(3)]
        for _ in range(90):
            action = torch.randint(2, (3, 4), generator=draw)
            episodes, taken = task.step(episodes, action, draw)
            finished = finished.with_(taken, taken.first)
            for run, side in (taken.terminated | taken.truncated).nonzero().tolist():
                first = taken.first[run, side].tolist()
                listed[run].append(
                    [*first, float(taken.total[run, side]), int(taken.age[run, side])]
                )
        for run, found in enumerate(listed):
            assert int(finished.number[run]) == len(found) > 5
            assert float(finished.total[run]) == sum(f[-2] for f in found)
            assert sorted(finished.kept[run, :-1].tolist()) == sorted(found[-5:])
        nothing = Finished.none(3, 5, 4, torch.zeros(()))
        assert nothing.mean(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 2, 3]

    def agent(self, actions, runs, always):
        """Learners whose greedy action is always the same one."""
        agent = QNetwork(4 if actions == 2 else 2, actions, (5,))
        state = agent.init(runs, generator(0))
        state.params.zero_()
        agent.mlp.layers(state.params)[-1].bias[..., always] = 1.0
        return agent, agent.open(state)

    def test_greedy_returns(self):
        agent, at = self.agent(3, 2, 1)
        task, unit = MountainCar(), torch.ones(2)
        found, steps = greedy_return(task, agent, at, unit, 3, generator(0))
        assert found.tolist() == [-200.0] * 2
        assert steps == 2 * 3 * 200
        agent, at = self.agent(2, 3, 0)
        found, steps = greedy_return(CartPole(), agent, at, torch.ones(4), 400, generator(0))
        assert steps == pytest.approx(400 * float(found.sum()))
        task, draw = CartPole(), generator(9)
        state = task.start((4000,), draw, torch.float32)
        alive, length = torch.ones(4000), torch.zeros(4000)
        for _ in range(20):
            state, _, over = task.advance(state, torch.zeros(4000, dtype=torch.long))
            length += alive
            alive *= ~over
        assert not bool(alive.any())
        torch.testing.assert_close(found, length.mean().expand(3), atol=0.15, rtol=0)

    def test_errors_of_a_model_that_never_ends(self):
        """It pays 0.5 a step for all 40 steps: the errors are 20 - return and 40 - length."""
        agent, at = self.agent(2, 2, 1)
        model = WorldModel(4, 2, (6,))
        state = model.init(2, generator(0))
        state.params.zero_()
        model._views(state.params)[0][-1].bias[..., 4:] = torch.tensor([0.5, -9.0])
        kept = torch.zeros(2, 4, 6)
        kept[0, :3, 4:] = torch.tensor([[10.0, 11], [26, 43], [30, 31]])
        finished = Finished(torch.tensor([2, 0]), torch.zeros(2), kept)
        otherwise = torch.full((2, 2), 7.0)
        for absolute, expected in ((False, [10 - 6, 29 - 3]), (True, [10 + 6, 29 + 3])):
            found = model_errors(
                model, model.open(state), agent, at, finished, 0.1, 40, 0.0, absolute, otherwise,
                generator(1),
            )  # fmt: skip
            assert found.tolist() == [[x / 2 for x in expected], [7, 7]]

    def test_exploration(self):
        by_phase, given = Exploration(), Exploration(random=10, decay=20, last=0.5)
        assert [by_phase(t, 100) for t in (0, 99, 100, 150, 200, 900)] == pytest.approx(
            [1, 1, 1, 0.55, 0.1, 0.1]
        )
        assert [given(t, 100) for t in (9, 20, 30, 31)] == pytest.approx([1, 0.75, 0.5, 0.5])
        assert Exploration(random=5, decay=0)(5, 100) == pytest.approx(0.1)


class TestReports:
    def found(self):
        scores = torch.tensor([[1.0, 3, 10], [1, 5, 14], [2, 2, 30], [2, 2, 30]])
        lengths = torch.tensor([[0.0, 4], [0, 8], [2, 2], [2, 2]])
        updates = torch.tensor([5.0, 5, 9, 9])
        return {"default": {"scores": scores, "lengths": lengths, "updates": updates}}

    def test_table(self):
        text = summary(self.found(), Rows(4, ["a", "b"], "synthetic"), 50)
        assert "| a | 0 | 3 | 6 | 12.0 ± 2.0 | 2.5 ± 0.5 | 2 | 5 | 100 |" in text
        assert "| b | 2 | 2 | 2 | 30.0 ± 0.0 | 2.0 ± 0.0 | 2 | 9 | 100 |" in text

    def test_written_schedule_can_be_replayed(self, tmp_path):
        paths = write_tables(self.found(), Rows(4, None, "synthetic"), 50, tmp_path)
        assert [p.name for p in paths] == ["schedules.md", "schedules.csv", "schedule.csv"]
        replay = Recorded(paths[2])
        assert [replay(x) for x in (0.0, 1.0)] == [1, 4]
        lines = paths[1].read_text().splitlines()
        assert lines[2].split(",") == ["default", "", "1", "100", "4", "2.82843", "21", "5.25991"]

    def test_figures_of_a_run(self, tmp_path):
        problem = make(LIGHT, rows=["a", "b"], tests=["default", "light"])
        engine = Engine(problem, Score(1), Schedule(Constant(2)), outer_steps=problem.outer_steps)
        snapshots = [(step, tree.clone(problem.snapshot(None, engine.inner))) for step, _ in engine]
        assert problem.figures(snapshots[:3], tmp_path / "early") == []
        paths = problem.figures(snapshots, tmp_path)
        assert {p.suffix for p in paths} == {".md", ".csv", ".png"}
        assert all(p.stat().st_size > 100 for p in paths)
        assert "return (light)" in paths[0].read_text()

    def test_listing(self):
        """Ten decisions are abbreviated to seven; columns are as wide as their widest cell."""
        found = self.found()
        found["default"]["lengths"] = torch.arange(10.0).expand(4, 10)
        lines = listing(found, Rows(4, ["a", "long name"], "synthetic")).splitlines()
        assert lines[0] == ("schedule   mean K in phase 1,3,4,5,7,9,10  return, default  area")
        assert lines[1] == ("a          0 2 3 4 6 8 9                   12.0 ± 2.0       2.5 ± 0.5")
        assert lines[2].split() == [
            "long", "name", *"0234689", "30.0", "±", "0.0", "2.0", "±", "0.0",
        ]  # fmt: skip
        assert "over 2 runs a schedule" in lines[3]

    def test_what_a_run_delivers(self, tmp_path):
        """The table and the figure that is there, or why there is none."""
        problem = make(LIGHT, rows=["a", "b"], tests=["default", "light"])
        assert isinstance(problem, Delivering)
        engine = Engine(problem, Score(1), Schedule(Constant(2)), outer_steps=problem.outer_steps)
        snapshots = [(step, tree.clone(problem.snapshot(None, engine.inner))) for step, _ in engine]
        early = problem.deliver(2, engine.inner, snapshots[:4], tmp_path)
        assert early == "No test is over; that takes outer_steps=10."
        assert not list(tmp_path.iterdir())
        half = problem.deliver(2, engine.inner, snapshots[:5], tmp_path / "half")
        assert "return, default" in half
        assert "light" not in half
        *table, figure = problem.deliver(2, engine.inner, snapshots, tmp_path).splitlines()
        path = tmp_path / "figures" / "schedules.png"
        assert figure == f"figure: {path}"
        assert path.is_file()
        assert [line.split()[0] for line in table] == ["schedule", "a", "b", "mean"]
        for name, line in zip("ab", table[1:3], strict=True):
            final = engine.inner.records.scores[:, :, -1].view(2, 2, 2).mean(2)
            returns = [f"{float(x):.1f} ±" for x in final[:, "ab".index(name)]]
            assert line.index(returns[0]) < line.rindex(returns[1])
            assert "2 2 2 2 " in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runs": 0}, "runs >= 1; got 0"),
        ({"steps": 250}, "steps divisible by phase"),
        ({"environments": 3}, "phase by environments"),
        ({"error_episodes": 3}, "at least environments=4; got 3"),
        ({"updates_per_step": 0.0}, "updates_per_step > 0"),
        ({"score": "best"}, "score=training or greedy; got 'best'"),
        ({"clip": 0.0}, "clip > 0"),
        ({"training_episodes": -1}, "training_episodes >= 0"),
        ({"first_length": 9}, "first_length in 0..8"),
        ({"planning": "imagined"}, "planning=synthetic, real"),
        ({"planning": ["real", "real", "real"]}, "3 equal parts"),
        ({"rows": ["a"], "planning": ["real", "real"]}, "as many rows"),
        ({"tests": ["heavy"]}, "no variant 'heavy'; its variants are none"),
        ({"tests": []}, "at least one; got \\[\\]"),
        ({"tests": ["default", "default"]}, "different tests"),
        ({"planner": Planner(cap=65)}, "too few for rollouts of cap=65"),
    ],
)
def test_bad_options_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        make(**changes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cap": 0}, "cap=0"),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"slots": 0}, "slots=0"),
        ({"epsilon": 1.5}, "epsilon=1.5"),
        ({"end_probability": 1.0}, "end_probability=1.0"),
    ],
)
def test_bad_planners_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Planner(**options)


@pytest.mark.parametrize(
    ("outer", "said"),
    [
        (9, "in 0..8"),
        (-1, "in 0..8"),
        (torch.tensor([1, 2]), "4 of them"),
        (torch.tensor([0.5] * 4), "an integer"),
    ],
)
def test_bad_lengths_are_refused(outer, said):
    problem = make()
    with pytest.raises(ValueError, match=said):
        problem.inner_step(outer, problem.init_inner(0, None, 0), 0)


@pytest.mark.slow
def test_planning_makes_learning_faster():
    """CartPole in 2,400 real steps: with a model, or with twice the updates, returns double."""
    problem = RolloutLength(
        CartPole(time_limit=200), partial(QNetwork, widths=(48, 32)),
        partial(WorldModel, widths=(48, 32)), runs=72, rows=["none", "real", "model"],
        planning=["synthetic", "real", "synthetic"], error_episodes=0,
    )  # fmt: skip
    lengths = torch.tensor([0, 0, 1]).repeat_interleave(24)
    inner = played(problem, lengths, problem.decisions + 1)
    none, real, model = inner.score.view(3, 24).mean(1)
    assert real > 2 * none
    assert model > 1.5 * none


class TestShipped:
    """The experiments' YAML, as they are instantiated."""

    def made(self, name, method):
        chosen = [f"experiment=rollout_length/{name}", f"method=rollout_length/{method}"]
        with composing():
            config = compose("train", chosen)
        return config, instantiate(config.problem, _convert_="all")

    @pytest.mark.parametrize("name", ["cartpole", "mountain_car", "acrobot"])
    def test_outer_steps_fit_training_and_tests(self, name):
        for method in ("real_extra", "meta_paper"):
            config, problem = self.made(name, method)
            assert config.outer_steps == problem.outer_steps
            assert problem.names == ["default", "perturbed"]
            assert config.row in config.report.rows
        assert config.report.baseline in config.report.rows

    @pytest.mark.parametrize(
        ("name", "decisions", "environment"),
        [("mountain_car", 15, (0.003, -1.1)), ("acrobot", 12, (12.0, 1.2, 1.2, 0.8))],
    )
    def test_the_papers_settings(self, name, decisions, environment):
        config, problem = self.made(name, "meta_paper")
        model, agent, acting = problem.model, problem.agent, problem.acting
        assert problem.decisions == decisions
        assert problem.runs * problem.training_episodes == 2000
        assert (acting.phase, acting.environments, acting.batch) == (10_000, 1, 32)
        assert acting.updates_per_step == problem.planner.ratio == 1
        observed = problem.training.observation_size
        inputs = observed + problem.training.actions
        assert [list(n.sizes) for n in model.networks] == [
            [inputs, 32, 16, observed], [inputs, 64, 32, 1], [inputs, 32, 16, 1],
        ]  # fmt: skip
        assert all(n.normalise for n in model.networks)
        assert (model.adam.lr, model.batch, model.held_out) == (1e-3, 32, 5)
        assert list(agent.mlp.sizes) == [observed, 64, 32, problem.training.actions]
        assert (agent.adam.lr, agent.target_every, agent.double) == (1e-4, 2000, True)
        assert [acting.exploration(t, 10_000) for t in (9_999, 15_000, 20_000, 90_000)] == (
            pytest.approx([1.0, 0.55, 0.1, 0.1])
        )
        assert problem.training.timeout_is_terminal
        assert problem.first_length == 0
        tested = vars(problem.tested[1])
        for value in environment:
            assert value in tested.values()
        assert instantiate(config.optimizer, _convert_="all").lr == 1e-4

    def test_methods_that_observe_measure_errors(self):
        for method, count in (("k4", 0), ("error_feedback", 4), ("meta_absolute", 4)):
            assert self.made("cartpole", method)[1].acting.error_episodes == count
        assert self.made("acrobot", "meta_paper")[1].acting.error_episodes == 50
