"""The simulated world: its truth, its judge as a text reader, its meta judge."""

import asyncio
import itertools

import numpy as np
import pytest
import torch

from metaopt.llm import Parameters
from metaopt.metrics.traits import planted_counts
from metaopt.problems.meta_policy_optimization import RubricWorld
from metaopt.problems.meta_policy_optimization.item_scores import (
    item_scores,
    read_weights,
    render,
)
from metaopt.problems.meta_policy_optimization.prompts import (
    analysing,
    judging,
    merging,
    read_rubric,
    refining,
)
from metaopt.problems.meta_policy_optimization.simulated_meta_judge import merged
from metaopt.problems.meta_policy_optimization.vocabulary import (
    ABUSES,
    CRITERIA,
    FEATURES,
    NEUTRAL,
    OVERALL,
    QUALITIES,
    describe,
    features,
)

WORLD = RubricWorld(seed=3)
VAGUE = render({OVERALL: 5.0})


def ask(lm, role, messages, rollout=0):
    return asyncio.run(lm.chat(role, messages, Parameters(), rollout)).text


def test_responses_survive_their_texts():
    for index in (0, 1, 77, 8191):
        assert WORLD.index(WORLD.response(index)) == index
    assert features(describe(["padding", "bullet points"])) == {"padding", "bullet points"}
    for other in ("clarity", "This response shows joy.", "This response shows clarity"):
        assert WORLD.index(other) is None


def test_quality_and_first_policy_are_those_of_independent_features():
    """By hand, from the rates: a sum over 2^13 responses factorises."""
    p = WORLD.log_prior.exp()
    torch.testing.assert_close(p.sum(1), torch.ones(4, dtype=torch.float64))
    rates = p @ torch.from_numpy(WORLD.features.astype(float))
    by_rates = rates @ torch.from_numpy(WORLD.weights)
    torch.testing.assert_close(p @ WORLD.quality, by_rates)
    for index in (5, 4097):
        bits = torch.tensor([index >> i & 1 for i in range(len(FEATURES))], dtype=torch.bool)
        product = torch.where(bits, rates, 1 - rates).prod(1)
        torch.testing.assert_close(p[:, index], product)
    w = WORLD.weights
    assert ((w[:6] >= 0.6) & (w[:6] <= 1.4)).all()
    assert ((w[6:9] <= -1.2) & (w[6:9] >= -2.2)).all()
    assert (w[9:] == 0).all()


def test_more_queries_leave_the_first_ones_as_they_are():
    assert torch.equal(RubricWorld(queries=6, seed=3).log_prior[:4], WORLD.log_prior)
    assert not torch.equal(RubricWorld(seed=4).log_prior, WORLD.log_prior)


def test_the_judge_reads_what_is_there_but_for_abuse_and_fixed_mistakes():
    """By hand, response by response, from what fools it and what it misreads."""
    for index in np.random.default_rng(1).integers(2**13, size=40).tolist():
        shown = features(WORLD.response(index))
        abuses = [name for name in ABUSES if name in shown]
        for row, name in enumerate(FEATURES):
            fooled = any(WORLD._fooled[row, ABUSES.index(abuse)] for abuse in abuses)
            seen = (name in shown or fooled) != WORLD._flipped[index, row]
            assert WORLD.readings[index, CRITERIA.index(name)] == seen
        level = 1.5 + sum(QUALITIES[i] in shown for i in WORLD._noticed) + 1.2 * len(abuses)
        stars = min(5, max(0, round(level + WORLD._noise[index])))
        assert WORLD.readings[index, CRITERIA.index(OVERALL)] == stars / 5


def test_the_judge_of_all_responses_is_the_one_that_reads_texts():
    lm, draw = WORLD.roles()["judge"], np.random.default_rng(0)
    for number in range(12):
        names = draw.choice(CRITERIA, size=1 + number, replace=False)
        rubric = render({str(n): round(draw.uniform(-5, 5), 2) or 1.0 for n in names})
        points = WORLD.points(rubric)
        for index in draw.integers(2**13, size=12).tolist():
            reply = ask(lm, "judge", judging(rubric, "query 0", WORLD.response(index)))
            scores = item_scores(reply, read_weights(rubric))
            assert scores is not None
            assert sum(scores.values()) == pytest.approx(points[index], abs=1e-9)


def test_the_judge_has_no_score_for_a_text_that_is_no_response():
    reply = ask(WORLD.roles()["judge"], "judge", judging(VAGUE, "query 0", "a text"))
    assert item_scores(reply, read_weights(VAGUE)) is None


def test_an_item_that_the_judge_does_not_know_has_no_points():
    """As a language model in the place of the meta judge writes them."""
    weights = {"wit": 5.0, "depth": 2.0, "verbosity": -4.0}
    reply = ask(WORLD.roles()["judge"], "judge", judging(render(weights), "q", WORLD.response(16)))
    scores = item_scores(reply, weights)
    assert scores["wit"] == scores["verbosity"] == 0
    assert (WORLD.points(render(weights)) == WORLD.points(render({"depth": 2.0}))).all()
    assert not WORLD.points(render({"wit": 1.0})).any()


def test_abuse_pays_and_costs():
    """Under the vague rubric each abuse adds points, by less than the clip at 5; truth is lost."""
    plain = [i for i in range(2**6) if bin(i).count("1") <= 1]
    points = WORLD.points(VAGUE)
    abused = [i | 1 << 6 for i in plain]
    assert points[abused].mean() > points[plain].mean() + 0.15
    assert float(WORLD.quality[abused].mean()) < float(WORLD.quality[plain].mean()) - 1


def test_a_perfect_meta_judge_finds_every_abuse_that_a_response_shows():
    lm = RubricWorld(error=0.0).roles()["meta"]
    for count in range(len(ABUSES) + 1):
        for shown in itertools.combinations(ABUSES, count):
            question = analysing(VAGUE, "query 0", describe(["depth", *shown]), 5.0)
            reply = ask(lm, "meta", refining(VAGUE, ask(lm, "meta", question)))
            weights = read_weights(read_rubric(reply))
            assert {name for name in ABUSES if weights.get(name, 0) < 0} == set(shown)
            assert not set(weights) & {*NEUTRAL}
            assert all(weights.get(q, 1) > 0 for q in QUALITIES)


def test_a_meta_judge_without_a_response_knows_nothing():
    lm = RubricWorld(error=0.0).roles()["meta"]
    for rollout in range(20):
        analysis = ask(lm, "meta", analysing(VAGUE, "query 0", None, None), rollout)
        assert read_rubric(ask(lm, "meta", refining(VAGUE, analysis))) == VAGUE


def test_a_meta_judge_that_is_always_wrong_names_qualities_and_abuses_alike():
    lm = RubricWorld(error=1.0).roles()["meta"]
    question = analysing(VAGUE, "query 0", describe(["padding"]), 5.0)
    said = {ask(lm, "meta", question, rollout) for rollout in range(400)}
    assert said == {f"{verb} {name}." for verb in ("Reward", "Deduct for") for name in FEATURES}


def test_merging_does_not_depend_on_the_order_of_refinements():
    draw = np.random.default_rng(1)
    current = {"depth": 5.0, "humour": 5.0, OVERALL: 5.0}
    for _ in range(20):
        refinements = []
        for _ in range(7):
            changed = {n: w for n, w in current.items() if draw.random() < 0.6}
            for name in draw.choice(FEATURES, 3, replace=False):
                changed[str(name)] = float(draw.choice([5.0, -4.0]))
            refinements.append(changed)
        wanted = list(merged(current, refinements).items())
        for _ in range(5):
            draw.shuffle(refinements)
            assert list(merged(current, refinements).items()) == wanted


def test_merging_votes():
    current = {"depth": 5.0, "humour": 5.0}
    refinements = [{"depth": 5.0, "padding": -4.0}, {"depth": 5.0, "humour": 5.0}]
    assert merged(current, refinements) == {"depth": 5.0, "padding": -4.0}  # humour: half drop it
    assert merged(current, refinements, votes=2) == {"depth": 5.0}
    # of as many votes for both signs, the deduction
    assert merged({"depth": 5.0}, [{"depth": 5.0}, {"depth": -4.0}]) == {"depth": -4.0}
    assert merged({"depth": 5.0}, [{"humour": 5.0}] * 2, votes=3) == {"depth": 5.0}
    many = dict.fromkeys(FEATURES, 5.0)
    assert len(merged({OVERALL: 5.0}, [{OVERALL: 5.0, **many}])) == 12


def test_the_simulated_meta_judge_merges_what_it_is_shown():
    lm = WORLD.roles()["meta"]
    refinements = [render({OVERALL: 5.0, "padding": -4.0}), render({OVERALL: 5.0, "depth": 5.0})]
    one, two = (
        read_weights(read_rubric(ask(lm, "meta", merging(VAGUE, refinements, votes))))
        for votes in (1, 2)
    )
    assert one == {OVERALL: 5.0, "depth": 5.0, "padding": -4.0}
    assert two == {OVERALL: 5.0}


def test_the_mixture_is_half_hacked():
    queries, responses = WORLD.mixture
    abused = WORLD.features[responses][:, 6:9].any(1).reshape(24, 32)
    assert abused[:, 16:].all()
    assert abused[:, :16].mean() < 0.2
    assert len(set(queries.tolist())) == 24
    assert np.array_equal(RubricWorld(seed=3, error=0.9).mixture[1], responses)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queries": 0}, "queries >= 1; got queries=0"), ({"error": 1.5}, "0 <= error <= 1"),
        ({"first": "good"}, "first to be one of vague, expert, oracle"), ({"flips": 0.7}, "flips"),
        ({"error_rate": 2.0}, "0 <= error_rate <= 1"),
    ],
)  # fmt: skip
def test_what_a_world_is_made_of_is_checked(change, said):
    with pytest.raises(ValueError, match=said):
        RubricWorld(**change)


def test_rubrics_are_measured_against_the_planted_features():
    """Coverage and redundancy of the three first rubrics, by the names of their items alone."""
    expected = {
        "vague": (0.0, 1.0),  # one item, about no feature
        "expert": (len(QUALITIES) / (len(QUALITIES) + len(ABUSES)), 0.0),
        "oracle": (1.0, 0.0),
    }
    for first, (coverage, redundancy) in expected.items():
        world = RubricWorld(first=first)
        counts = planted_counts(world.planted, read_weights(world.rubric))
        assert (counts.coverage, counts.redundancy) == (coverage, redundancy), first
