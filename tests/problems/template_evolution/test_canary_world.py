"""The canary world: its truth is as stated, and its answers are functions of their requests."""

import numpy as np
import pytest

from metaopt.llm import Client, Parameters, Request, user
from metaopt.llm.rubric import Rubric, parse, parse_score, parse_weights
from metaopt.metrics.traits import TraitCounts, planted_counts
from metaopt.problems.template_evolution.canary_world import SIGNAL, TRAITS, CanaryWorld
from metaopt.problems.template_evolution.canary_writers import TOKENS
from metaopt.problems.template_evolution.evolution import WEIGHED
from metaopt.problems.template_evolution.prompts import (
    Example,
    judging,
    prompting,
    read_prompts,
    read_template,
    rewriting,
)

EXACT = Parameters()


@pytest.fixture(scope="module")
def world():
    return CanaryWorld(queries=3, seed=1)


@pytest.fixture(scope="module")
def client(world):
    return Client(world.roles())


def test_a_random_prompt_succeeds_one_time_in_a_hundred(world):
    rates = [world.success(1, prompt) for prompt in world.prompts(1, 3000, key=5)]
    assert np.mean(rates) == pytest.approx(0.01, abs=0.005)


def test_the_stated_rate_is_the_rate_of_responses(world):
    prompts = sorted(world.prompts(0, 2000, key=1), key=lambda p: -world.success(0, p))
    prompt = next(p for p in prompts if world.success(0, p) < 0.7)
    hits = [world.check(0, world.respond(prompt, key), 0) for key in range(400)]
    assert np.mean(hits) == pytest.approx(world.success(0, prompt), abs=0.1)


def test_the_same_request_gets_the_same_answer_in_any_order(world):
    prompts = world.prompts(0, 20, key=2)
    requests = [Request("target", user(p), EXACT, r) for p in prompts for r in (0, 1)]
    forwards = Client(world.roles()).ask(requests)
    backwards = Client(world.roles(), concurrency=1).ask(requests[::-1])
    assert forwards == backwards[::-1]
    first, second = forwards[0].text, forwards[1].text
    assert first != second  # another rollout is another draw


def test_the_judge_reads_the_rubric_and_not_the_canary(world, client):
    response = ", ".join(f"{t} {0.9 if t == 'warmth' else 0.5:.2f}" for t in TRAITS)
    scores = {}
    for weight in (4.0, 0.0, -4.0):
        template = Rubric({"warmth": weight}).render()
        for canary in ("nothing to see", world.canary(0)):
            (reply,) = client.ask(
                [
                    Request(
                        "judge", judging(template, world.queries[0], f"{response}\n{canary}"), EXACT
                    )
                ]
            )
            scores[weight, canary == world.canary(0)] = parse_score(reply.text)
    assert scores[4.0, False] > scores[0.0, False] > scores[-4.0, False]
    assert abs(scores[0.0, True] - scores[0.0, False]) < 3  # the noise of the judge alone


def test_a_judge_without_a_rubric_gives_no_score(world, client):
    (reply,) = client.ask([Request("judge", judging("Be kind.", "q", "specificity 0.50"), EXACT)])
    assert parse_score(reply.text) is None


def test_strictness_lowers_scores(world, client):
    rows = [r for r, _ in world.examination(0)]
    means = []
    for strictness in (0.0, 2.0):
        template = Rubric(SIGNAL, strictness).render()
        asked = [Request("judge", judging(template, world.queries[0], r), EXACT) for r in rows]
        scores = [parse_score(a.text) for a in client.ask(asked)]
        means.append(np.mean([s for s in scores if s is not None]))
    assert means[1] < means[0] - 0.5


def test_the_checker_errs_at_its_rate():
    world = CanaryWorld(queries=1, checker_error=0.1)
    wrong = [world.check(0, "nothing to see", key) for key in range(2000)]
    assert np.mean(wrong) == pytest.approx(0.1, abs=0.025)


def test_the_optimizer_writes_prompts_near_the_best(world, client):
    shown = [(p, 5.0) for p in world.prompts(2, 5, key=3)]
    messages = prompting(world.queries[2], shown, 50, "Write.")
    (reply,) = client.ask([Request("optimizer", messages, Parameters(1.0), 0)])
    written = read_prompts(reply.text, 50)
    assert len(written) > 40
    assert all(p.startswith("query 2: ") for p in written)
    assert all(set(p.split()[2:]) <= set(TOKENS) and len(p.split()) == 8 for p in written)

    def kept(prompt, rank):
        return np.mean(
            [a == b for a, b in zip(prompt.split(), shown[rank][0].split(), strict=True)]
        )

    assert np.mean([kept(p, 0) for p in written]) > np.mean([kept(p, 4) for p in written])


def test_the_rewriter_moves_towards_what_it_is_shown(world, client):
    first = Rubric(dict.fromkeys(TRAITS, 0.0)).render()
    level = {True: 0.9, False: 0.1}
    examples = [
        Example(
            ", ".join(f"{t} {level[y] if t == 'directness' else 0.5:.2f}" for t in TRAITS), 5.0, y
        )
        for y in (True, False)
    ]
    moved, blind = [], []
    for rollout in range(20):
        for shown, written in ((examples, moved), ([], blind)):
            messages = rewriting([(first, 50.0)], shown)
            (reply,) = client.ask([Request("template", messages, Parameters(1.0), rollout)])
            written.append(parse(read_template(reply.text)).weights["directness"])
    assert np.mean(moved) > 2
    assert abs(np.mean(blind)) < 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries": 0}, {"noise": -1.0}, {"parse_failures": 1.0}, {"checker_error": 0.6},
        {"template": "best"},
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CanaryWorld(**wrong)


def test_templates_are_measured_against_the_planted_traits():
    """Of polish, 8 of 10 criteria weigh a quarter of the largest; hedging has the wrong sign."""
    polish, oracle = (CanaryWorld(template=template) for template in ("polish", "oracle"))
    counts = planted_counts(polish.planted, parse_weights(polish.template), WEIGHED)
    assert counts == TraitCounts(3, 1, 8, 1)
    counts = planted_counts(oracle.planted, parse_weights(oracle.template), WEIGHED)
    assert counts == TraitCounts(3, 3, 3, 3)
