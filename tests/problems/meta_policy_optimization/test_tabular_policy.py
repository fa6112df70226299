"""The exact policy: its fixed point, KL and quality by enumeration, and its samples."""

import pytest
import torch

from metaopt.problems.meta_policy_optimization import Reward, RubricWorld, TabularPolicy
from metaopt.problems.meta_policy_optimization.item_scores import factor, read_weights, render
from metaopt.problems.meta_policy_optimization.vocabulary import FEATURES, OVERALL

WORLD = RubricWorld(seed=5)
RUBRIC = render({OVERALL: 5.0, "depth": 5.0, "padding": -4.0})


def never(rubric, pairs):
    raise AssertionError("the exact policy asks no judge")


def reward(rubric=RUBRIC, scale="total"):
    return Reward(rubric, scale, never)


@pytest.mark.parametrize("scale", ["total", "mean", "sum"])
def test_mirror_descent_reaches_the_optimum_of_the_kl_objective(scale):
    policy = TabularPolicy(WORLD, step_size=2.0, kl_coefficient=0.25)
    state = policy.init(0)
    for step in range(80):
        state = policy.update(state, reward(scale=scale), step)
    points = torch.from_numpy(WORLD.points(RUBRIC))
    log_pi = WORLD.log_prior + factor(read_weights(RUBRIC), scale) * points / 0.25
    torch.testing.assert_close(state["log_probability"], log_pi.log_softmax(1))


def test_an_update_leaves_its_argument_and_follows_the_formula():
    policy = TabularPolicy(WORLD)
    first = policy.init(0)
    before = first["log_probability"].clone()
    state = policy.update(policy.update(first, reward(), 0), reward(), 1)
    assert torch.equal(first["log_probability"], before)
    r = 10 / 14 * torch.from_numpy(WORLD.points(RUBRIC))
    expected = before
    for _ in range(2):
        expected = (1 - 0.03 * 0.12) * expected + 0.03 * 0.12 * before + 0.03 * r
    torch.testing.assert_close(state["log_probability"], expected.softmax(1).log())


def test_quality_hack_rate_and_kl_are_sums_over_all_responses():
    policy = TabularPolicy(WORLD)
    state = policy.init(0)
    assert policy.measure(state, reward())["quality"] == pytest.approx(0, abs=1e-12)
    assert policy.measure(state, reward())["kl"] == pytest.approx(0, abs=1e-12)
    for step in range(40):
        state = policy.update(state, reward(), step)
    measured = policy.measure(state, reward())
    pi, prior = state["log_probability"].exp(), WORLD.log_prior.exp()
    quality = kl = hacks = score = 0.0
    points = WORLD.points(RUBRIC)
    for index in range(2 ** len(FEATURES)):
        bits = [index >> i & 1 for i in range(len(FEATURES))]
        u = sum(b * w for b, w in zip(bits, WORLD.weights.tolist(), strict=True))
        p, q = pi[:, index], prior[:, index]
        quality += u * float((p - q).mean())
        hacks += sum(bits[6:9]) / 3 * float(p.mean())
        kl += float((p * (p / q).log()).mean())
        score += points[index] / 14 * float(p.mean())
    expected = {"quality": quality, "hack_rate": hacks, "kl": kl, "score": score}
    assert measured == pytest.approx(expected, rel=1e-9)


def test_samples_follow_the_table():
    policy = TabularPolicy(WORLD)
    state = policy.init(0)
    drawn = policy.sample(state, 4000, key=7)
    assert drawn == policy.sample(state, 4000, key=7)
    shares = torch.bincount(torch.tensor([query for query, _ in drawn])) / 4000
    assert ((shares - 0.25).abs() < 0.05).all()
    rates = state["log_probability"].exp() @ torch.from_numpy(WORLD.features.astype(float))
    for i, name in enumerate(FEATURES):
        seen = sum(name in text for _, text in drawn) / 4000
        assert seen == pytest.approx(float(rates[:, i].mean()), abs=0.05)


def test_what_it_cannot_be_trained_under_is_refused():
    with pytest.raises(ValueError, match=r"problem\.roles\.judge cannot be another model"):
        TabularPolicy(WORLD).check({"judge": WORLD.roles()["judge"]})
    TabularPolicy(WORLD).check({"meta": WORLD.roles()["meta"]})
    with pytest.raises(ValueError, match="step_size > 0"):
        TabularPolicy(WORLD, step_size=0.0)
    with pytest.raises(ValueError, match="step_size \\* kl_coefficient <= 1"):
        TabularPolicy(WORLD, step_size=10.0)
    with pytest.raises(ValueError, match="is not a response of this world"):
        WORLD.true_quality("query 0", "a text")
