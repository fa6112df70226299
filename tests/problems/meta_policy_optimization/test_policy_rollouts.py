"""What a rewrite reads: a uniform sample of the responses that the updates were made with."""

import numpy as np
import pytest
from tiny_text_policy import notice_policy

from metaopt.engine.random import fold
from metaopt.problems.meta_policy_optimization import MetaPolicyOptimization
from metaopt.problems.meta_policy_optimization.rollouts import resampled

RUNS, UPDATES, EACH, COUNT = 1000, 3, 4, 5


def test_a_sample_and_its_beginning_are_uniform():
    beginning, whole = np.zeros((2, UPDATES * EACH))
    for run in range(RUNS):
        sample = []
        for update in range(UPDATES):
            before = update * EACH
            items, key = range(before, before + EACH), fold(run, update)
            sample = resampled(sample, items, before, COUNT, key)
            assert len(set(sample)) == len(sample) == min(before + EACH, COUNT)
        whole[sample] += 1
        beginning[sample[:2]] += 1
    for counts, size in ((whole, COUNT), (beginning, 2)):
        p = size / (UPDATES * EACH)
        # Without replacement: the covariances leave chi-squared with 11 degrees of freedom times
        # 12 / 11 of a single inclusion's variance.
        chi = ((counts - RUNS * p) ** 2).sum() / (RUNS * p * (1 - p)) * 11 / 12
        assert chi < 31.3  # its 99.9 % quantile


@pytest.mark.parametrize("rollouts", [5, 40])
def test_the_responses_of_updates_are_judged_once_and_shown(rollouts, monkeypatch):
    policy = notice_policy(teaching_steps=2, max_tokens=6)
    problem = MetaPolicyOptimization(policy, rollouts=rollouts, inner_steps=2)
    read, judge = [], problem.points

    def points(rubric, pairs, role="judge"):
        read.append(list(pairs))
        return judge(rubric, pairs, role)

    monkeypatch.setattr(problem, "points", points)
    rubric = policy.rubric
    inner = problem.init_inner(rubric, None, 0)
    monkeypatch.setattr(policy, "sample", None)  # nothing is drawn beside the updates
    for step in range(2):
        inner = problem.inner_step(rubric, inner, step)
    feedback = problem.evaluate(rubric, inner, 2)
    updates, shown = read[:2], read[2]
    assert [len(pairs) for pairs in updates] == [8, 8]
    assert len(shown) == min(rollouts, 16)
    of_updates = [(i, *pair) for i, pairs in enumerate(updates) for pair in pairs]
    samples = [(i, q, problem.client.text(ref)) for i, q, ref, _ in feedback.artifacts["samples"]]
    assert not set(samples) - set(of_updates)
    if rollouts > 16:
        assert sorted(samples) == sorted(of_updates)
    asked = {pair for pairs in updates for pair in pairs}
    assert problem.client.spent("judge")["lm_calls"] == len(asked)
