"""Adaptive rollout length: what planning does, and what it leaves alone."""

import pytest
import torch
from small_runs import NEVER, make, planned, played

from metaopt.environments.transitions import unpack
from metaopt.problems.rollout_length.planning import Planner
from metaopt.testing.trees import identical


class TestPlanning:
    def test_synthetic_steps_are_the_same_for_every_length(self):
        """M rollouts of K steps make S = P steps, where K divides what a slot makes."""
        problem = make()
        lengths = [1, 2, 4, 8]
        _, plans = planned(problem, played(problem), lengths)
        assert plans.steps.tolist() == [64] * 4
        assert plans.rollouts.tolist() == [64 // k for k in lengths]
        assert plans.updates.tolist() == [16] * 4

    @pytest.mark.parametrize(("ratio", "cap"), [(1.0, 12), (2.5, 7), (0.3, 19)])
    def test_synthetic_steps_where_nothing_divides(self, ratio, cap):
        problem = make(planner=Planner(cap=cap, ratio=ratio, end_probability=NEVER))
        _, plans = planned(problem, played(problem), [1, 3, 5, 7])
        steps = round(64 * ratio)
        assert plans.steps.tolist() == [steps] * 4
        side = problem.planner.slots(64)
        shares = [len(range(i, steps, side)) for i in range(side)]
        assert plans.rollouts.tolist() == [sum(-(-n // k) for n in shares) for k in (1, 3, 5, 7)]
        assert plans.updates.tolist() == [steps // 4] * 4

    def test_each_run_has_its_own_length(self):
        problem = make()
        for lengths in ([1, 3, 7, 8], [8, 0, 2, 5]):
            _, plans = planned(problem, played(problem), lengths)
            assert plans.longest.tolist() == lengths

    def test_predicted_ends_cut_rollouts_and_others_follow(self):
        problem = make(planner=Planner(cap=8, end_probability=1e-9))
        _, plans = planned(problem, played(problem), [8, 8, 8, 8])
        assert plans.longest.tolist() == [1] * 4
        assert plans.rollouts.tolist() == plans.steps.tolist() == [64] * 4

    def test_length_zero_plans_nothing(self):
        """Parameters, target and Adam's moments of such a run stay as they are, to the bit."""
        problem = make()
        before = played(problem)
        after, plans = planned(problem, before, [0, 4, 0, 4])
        assert plans.steps.tolist() == [0, 64, 0, 64]
        assert plans.updates.tolist() == [0, 16, 0, 16]
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
        after, plans = planned(problem, before, [0] * 4)
        assert identical(after, before)
        assert not any(bool(t.any()) for t in plans)

    def test_rollouts_start_at_real_observations_and_go_on_from_predictions(self):
        problem = make()
        before = played(problem)
        lengths = [1, 2, 4, 8]
        after, _ = planned(problem, before, lengths)
        side = problem.planner.slots(64)
        made = unpack(after.transitions[:, 256 : 256 + 64])
        observed = made.observation.view(4, 64 // side, side, 4)
        ends = made.next_observation.view(4, 64 // side, side, 4)
        real = unpack(before.transitions[:, :64]).observation
        for run, k in enumerate(lengths):
            for i in range(64 // side):
                for slot in range(side):
                    if i % k:
                        assert torch.equal(observed[run, i, slot], ends[run, i - 1, slot])
                    else:
                        assert bool((real[run] == observed[run, i, slot]).all(1).any())

    def test_updates_read_this_phases_synthetic_rows_only(self):
        """Poisoned rewards of real rows and rows of an earlier phase are never read."""
        problem = make()
        before = played(problem)
        before.transitions[:, :64, -3] = torch.nan
        before.transitions[:, 256:] = torch.nan
        after, _ = planned(problem, before, [1, 2, 4, 8])
        assert bool(torch.isfinite(after.agent.params).all())

    def test_real_planning_reads_real_rows_only(self):
        problem = make(planning="real")
        before = played(problem)
        before.transitions[:, 64:] = torch.nan
        after, plans = planned(problem, before, [0] * 4)
        assert plans.updates.tolist() == [16] * 4
        assert not bool(plans.steps.any())
        assert bool(torch.isfinite(after.agent.params).all())
        assert bool((after.agent.params != before.agent.params).any(1).all())

    def test_rows_may_plan_differently(self):
        problem = make(groups=["a", "b"], planning=["synthetic", "real"])
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

    def test_updates_after_the_rollouts_do_not_change_them(self):
        before, made = played(make()), {}
        for interleave in (True, False):
            for rate in (0.25, 0.5):
                planner = Planner(cap=8, end_probability=NEVER, interleave=interleave)
                problem = make(planner=planner, updates_per_step=rate)
                after, plans = planned(problem, before, [1, 2, 4, 8])
                assert plans.updates.tolist() == [64 * rate] * 4
                made[interleave, rate] = after.transitions[:, 256:]
        assert torch.equal(made[False, 0.25], made[False, 0.5])
        assert not torch.equal(made[True, 0.25], made[True, 0.5])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cap": 0}, "cap=0"),
        ({"ratio": 0.0}, "ratio=0.0"),
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
