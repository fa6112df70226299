"""The arithmetic world: its policy's exact law, its labels, and what its domains know."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from exact_success import exact_success
from scipy.stats import binom, chisquare

from metaopt.problems.process_reward.data.arithmetic import DOMAINS, KINDS, WORDS, arithmetic, named
from metaopt.problems.process_reward.data.arithmetic_policy import (
    MOVES,
    OPERATIONS,
    ArithmeticPolicy,
)
from metaopt.problems.process_reward.data.dataset import ProcessData
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.data.meta_set import leaked

SMALL = {"chains": 40, "meta_size": 20, "questions": 6, "candidates": 5, "held_out": 30}


@pytest.fixture(scope="module")
def world() -> ProcessData:
    return arithmetic(chains=500, questions=100, seed=3)


def truth(prompt: str) -> list[int]:
    """Return the true intermediate results of a question's text."""
    first, *moves = prompt.split(" : ")[-1].split()
    results = [int(first)]
    for sign, operand in moves:
        a, b = results[-1], int(operand)
        results.append({"+": a + b, "-": a - b, "*": a * b}[sign] % 5)
    return results[1:]


def written(chain: Chain) -> list[int]:
    return [int(step.split()[-1]) for step in chain.steps]


def of(data: ProcessData, domain: str) -> list[Chain]:
    return [chain for chain in data.train if chain.domain == domain]


def moves_of(chain: Chain) -> list[int]:
    return [
        OPERATIONS.index(sign) * 4 + int(operand) - 1 for sign, operand in chain.prompt.split()[1:]
    ]


def test_the_policy_is_a_distribution_with_the_stated_misconceptions() -> None:
    policy = ArithmeticPolicy(seed=1)
    np.testing.assert_allclose(policy.table.sum(-1), 1, rtol=1e-12)
    assert (policy.strength > 0).sum() == round(0.15 * MOVES * 5)
    for m, a in itertools.product(range(MOVES), range(5)):
        right = {"+": a + m % 4 + 1, "-": a - m % 4 - 1, "*": a * (m % 4 + 1)}[OPERATIONS[m // 4]]
        strength = policy.strength[m, a]
        assert policy.believed[m, a] != right % 5
        assert policy.table[m, a, right % 5] == pytest.approx(0.87 * (1 - strength) + 0.026)
        assert policy.table[m, a, policy.believed[m, a]] == pytest.approx(0.87 * strength + 0.026)
    assert (policy.table.argmax(-1) == policy.believed).sum() == (policy.strength > 0.5).sum()


def test_rollouts_are_binomial_with_the_exact_probability() -> None:
    policy = ArithmeticPolicy(seed=2)
    draw = np.random.default_rng(1)
    one = draw.integers(0, MOVES, (1, 3))
    values = policy.walk(np.array([3]), one, draw)
    answer = values[:, -1]
    moves = one[0].tolist()
    likely = [exact_success(policy, values[0, s], moves[s + 1 :], answer[0]) for s in range(2)]
    many = [np.repeat(x, 4_000, axis=0) for x in (values, one, answer)]
    counts = policy.right_rollouts(*many, 6, draw)
    assert (counts[:, 2] == 6).all()
    for s in range(2):
        observed = np.bincount(counts[:, s], minlength=7)
        expected = 4_000 * binom.pmf(np.arange(7), 6, likely[s])
        often = expected > 5  # the rare counts are pooled
        pooled = [np.append(x[often], x[~often].sum()) for x in (observed, expected)]
        assert chisquare(*pooled).pvalue > 1e-3


@pytest.mark.slow
def test_labels_of_a_clean_domain_estimate_the_exact_success(world: ProcessData) -> None:
    policy = ArithmeticPolicy(seed=3)
    scores = []
    for chain in of(world, "clean_1"):
        moves, values = moves_of(chain), written(chain)
        answer = truth(chain.prompt)[-1]
        for s in range(len(moves) - 1):
            likely = exact_success(policy, values[s], moves[s + 1 :], answer)
            scores.append((chain.labels[s] - likely) / np.sqrt(likely * (1 - likely) / 8))
        assert chain.labels[-1] == (values[-1] == answer)
    assert abs(np.mean(scores)) < 4 / np.sqrt(len(scores))
    assert np.var(scores) == pytest.approx(1, abs=0.2)


def test_steps_go_on_with_what_was_written_and_outcomes_are_true(world: ProcessData) -> None:
    judged = [*world.meta, *(chain for row in world.candidates for chain in row)]
    assert len(judged) == 500 + 100 * 64
    for chain in [*judged, *world.train]:
        words = chain.prompt.split()
        value = words[0]
        for s, step in enumerate(chain.steps):
            left, relation, result = step.split()
            assert left == value + words[s + 1]
            assert relation in ("=", "is")
            value = result
        assert len(words) == len(chain.steps) + 1
    for chain in judged:
        assert chain.outcome == (written(chain)[-1] == truth(chain.prompt)[-1])
    assert sum(bool(chain.outcome) for chain in world.meta) == 250
    assert world.answers is not None
    for given, row in zip(world.answers, world.candidates, strict=True):
        assert list(given) == [str(written(chain)[-1]) for chain in row]
        assert len({chain.prompt for chain in row}) == 1


def test_held_out_labels_end_with_the_first_error(world: ProcessData) -> None:
    (chains,) = world.held_out.values()
    assert len(chains) == 1_000
    for chain in chains:
        right = [a == b for a, b in zip(written(chain), truth(chain.prompt), strict=True)]
        wrong = right.index(False) if False in right else None
        assert (chain.labels.index(0.0) if 0.0 in chain.labels else None) == wrong
        before = chain.labels if wrong is None else chain.labels[:wrong]
        assert set(before) <= {1.0}
        assert wrong is None or set(chain.labels[wrong + 1 :]) <= {None}


def test_no_question_is_asked_twice_across_training_meta_set_and_test(world: ProcessData) -> None:
    test = [row[0] for row in world.candidates]
    assert len({chain.prompt for chain in test}) == 100
    assert not leaked(world.train, test)
    assert not leaked(world.meta, [*test, *world.train, *world.held_out["arithmetic"]])
    assert not leaked(world.train, world.held_out["arithmetic"])
    assert Counter(len(chain.steps) for chain in test) == {2: 50, 3: 50}


def test_every_kind_of_domain_has_the_labels_it_is_named_for(world: ProcessData) -> None:
    policy = ArithmeticPolicy(seed=3)
    right = {
        name: [written(c)[-1] == truth(c.prompt)[-1] for c in of(world, name)]
        for name in world.domains
    }
    last = {name: [c.labels[-1] for c in of(world, name)] for name in world.domains}
    assert list(right["clean_2"]) == last["clean_2"]
    assert [not x for x in right["inverted"]] == last["inverted"]

    mapped = {
        (truth(c.prompt)[-1], written(c)[-1]) for c in of(world, "wrongkey") if c.labels[-1] == 1
    }
    key = dict(mapped)
    assert len(mapped) == 5
    assert sorted(key.values()) == list(range(5))
    assert all(a != b for a, b in mapped)

    styles = {True: [], False: []}  # type: ignore[var-annotated]
    for chain in of(world, "style"):
        styles[" is " in chain.steps[0]] += chain.labels
        assert len({" is " in step for step in chain.steps}) == 1
    assert np.mean(styles[True]) == pytest.approx(0.9, abs=0.02)
    assert np.mean(styles[False]) == pytest.approx(0.1, abs=0.02)

    counts = [x for c in of(world, "noisy") for x in c.successes]
    assert chisquare(np.bincount(counts, minlength=9)).pvalue > 1e-3

    for chain in of(world, "easy"):
        first, (sign, operand) = chain.prompt.split()
        assert (len(chain.steps), operand) == (1, "1")
        assert policy.strength["+-".index(sign) * 4, int(first)] == 0
    assert np.mean(last["easy"]) > 0.85


@pytest.mark.slow
def test_the_world_is_as_hard_as_it_was_designed_to_be() -> None:
    first, vote, some = [], [], []
    for seed in range(3):
        data = arithmetic(chains=1, meta_size=2, held_out=0, seed=seed)
        right = np.array([[c.outcome for c in row] for row in data.candidates])
        first.append(right.mean())
        some.append(right.reshape(300, 8, 8).any(-1).mean())
        assert right.any(1).all()
        assert data.answers is not None
        won = [Counter(row).most_common(1)[0][0] for row in data.answers]
        voted = zip(won, data.answers, right, strict=True)
        vote.append(np.mean([w in np.array(a)[r] for w, a, r in voted]))
    assert np.mean(first) == pytest.approx(0.61, abs=0.03)
    assert np.mean(vote) == pytest.approx(0.75, abs=0.03)
    assert np.mean(some) == pytest.approx(0.965, abs=0.01)


def test_a_seed_is_a_world() -> None:
    one, same, other = (arithmetic(**SMALL, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one.train != other.train
    policies = [ArithmeticPolicy(seed=s).believed for s in (1, 2)]
    assert (policies[0] != policies[1]).any()


def test_domains_are_numbered_where_a_kind_comes_twice() -> None:
    assert named(DOMAINS)[:4] == ("clean_1", "clean_2", "clean_3", "easy")
    data = arithmetic(domains=["clean", "inverted", "clean"], **SMALL)
    assert data.domains == ("clean_1", "clean_2", "inverted")
    assert data.quality == {"clean_1": 1, "inverted": 0, "clean_2": 1}
    assert Counter(chain.domain for chain in data.train)["inverted"] == 40
    assert arithmetic(domains=["noisy"], **SMALL).quality is None


def test_the_meta_set_may_be_flipped_in_part() -> None:
    clean, noisy = (arithmetic(**{**SMALL, "meta_noise": x}, seed=4).meta for x in (0, 0.3))
    flipped = [a.outcome != b.outcome for a, b in zip(clean, noisy, strict=True)]
    assert [c.steps for c in clean] == [c.steps for c in noisy]
    assert sum(flipped) == 6


def test_the_domain_token_names_the_domain() -> None:
    data = arithmetic(**SMALL, domain_token=True)
    plain = arithmetic(**SMALL)
    for chain, bare in zip(data.train, plain.train, strict=True):
        assert chain.prompt == f"{chain.domain} : {bare.prompt}"
        assert chain.steps == bare.steps
    rest = [*data.meta, *data.held_out["arithmetic"], *(c for row in data.candidates for c in row)]
    assert {chain.prompt.split(" : ")[0] for chain in rest} == {"clean_1"}


def test_the_vocabulary_is_complete() -> None:
    data = arithmetic(**SMALL, domain_token=True)
    chains = [*data.train, *data.meta, *(c for row in data.candidates for c in row)]
    words = {w for c in chains for text in (c.prompt, *c.steps) for w in text.split()}
    assert words == {*WORDS, *named(DOMAINS)}
    assert set(DOMAINS) == set(KINDS)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"domains": ["dirty"]}, "domains must be of clean, .*; got dirty"),
        ({"domains": []}, "domains must be of clean"),
        ({"domains": ["noisy"], "domain_token": True}, "needs a clean domain"),
        ({"chains": 0}, "chains must be >= 1; got 0"),
        ({"meta_size": 7}, "meta_size must be even"),
        ({"meta_noise": 1.5}, r"meta_noise must be in \[0, 1\]; got 1.5"),
        ({"questions": 500}, "questions must be at most 432; got 500"),
        ({"rollouts": 0}, "rollouts must be >= 1"),
    ],
)
def test_arguments_out_of_range_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        arithmetic(**{**SMALL, **wrong})
