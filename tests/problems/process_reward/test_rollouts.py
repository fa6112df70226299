"""Monte-Carlo labels against exact success, resuming, judges, and every kind of policy."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_success import exact_success
from scipy.stats import binom

from metaopt.problems.process_reward.data.arithmetic_policy import ArithmeticPolicy, solve
from metaopt.problems.process_reward.data.arithmetic_world import ArithmeticWorld
from metaopt.problems.process_reward.data.formats import Chain, read
from metaopt.problems.process_reward.labelling.arithmetic import ArithmeticCompletion
from metaopt.problems.process_reward.labelling.rollouts import (
    SETTINGS,
    RolloutCounts,
    judged,
    label_steps,
)

POLICY = ArithmeticPolicy(seed=0)
CHAIN = Chain("1 +2 *3", ("1+2 = 3", "3*3 = 4"))


def solved(prompt: str) -> str:
    first, *moves = prompt.split()
    value = int(first)
    for sign, operand in moves:
        b = int(operand)
        value = {"+": value + b, "-": value - b, "*": value * b}[sign] % 5
    return str(value)


def some(count: int) -> tuple[list[Chain], list[str]]:
    world = ArithmeticWorld(seed=0, rollouts=1)
    chains = list(world.domain("clean", "clean", count, 0, ""))
    bare = [Chain(c.prompt, c.steps, qid=c.qid, domain="clean") for c in chains]
    return bare, [solved(chain.prompt) for chain in bare]


class Coin:
    """Right with a fixed probability; notes what it is asked."""

    name = "coin"

    def __init__(self, chance: float = 0.5, silent: float = 0.0, fail_at: int = -1) -> None:
        self.chance, self.silent, self.fail_at = chance, silent, fail_at
        self.calls: list[int] = []

    def complete(
        self, prompts: Sequence[str], prefixes: Sequence[Sequence[str]], draw: np.random.Generator
    ) -> list[str | None]:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(len(prompts))
        right = draw.random(len(prompts)) < self.chance
        silent = draw.random(len(prompts)) < self.silent
        return [None if s else f"A: {int(r)}" for r, s in zip(right, silent, strict=True)]


def early_stopped(p: float) -> tuple[float, float]:
    """Return mean and deviation of a label with 4 rollouts, and 8 where those 4 differ."""
    values, chances = [0.0, 1.0], [(1 - p) ** 4, p**4]
    for first, second in itertools.product(range(1, 4), range(5)):
        values.append((first + second) / 8)
        chances.append(binom.pmf(first, 4, p) * binom.pmf(second, 4, p))
    mean = float(np.dot(values, chances))
    return mean, max(float(np.dot(np.square(values), chances)) - mean**2, 0.0) ** 0.5


def test_labels_are_the_exact_success_but_for_the_known_bias_of_stopping(tmp_path: Path) -> None:
    chains, answers = some(12)
    copies = [chain for chain in chains for _ in range(60)]
    wanted = [answer for answer in answers for _ in range(60)]
    labelled = label_steps(copies, wanted, ArithmeticCompletion(POLICY), tmp_path, batch=720)
    compared = 0
    for i, chain in enumerate(chains):
        same = labelled[i * 60 : (i + 1) * 60]
        moves = ["+-*".index(sign) * 4 + int(b) - 1 for sign, b in chain.prompt.split()[1:]]
        values = [int(step.split()[-1]) for step in chain.steps]
        for s in range(len(moves)):
            likely = exact_success(POLICY, values[s], moves[s + 1 :], int(answers[i]))
            mean, deviation = early_stopped(likely)
            q = 1 - likely
            assert mean - likely == pytest.approx(
                (1 - 4 / 8) * likely * q * (likely**3 - q**3), abs=1e-12
            )
            labels = [c.labels[s] for c in same]
            assert np.mean(labels) == pytest.approx(mean, abs=4.5 * deviation / np.sqrt(60) + 1e-9)
            compared += 1e-6 < likely < 1 - 1e-6
    assert compared >= 12


def test_rollouts_go_to_the_undecided(tmp_path: Path) -> None:
    chains = [Chain("q", ("s",), qid=str(i)) for i in range(400)]
    coin = Coin(0.8)
    labelled = label_steps(chains, ["1"] * 400, coin, tmp_path, minimum=3, maximum=10, batch=400)
    counts = [(c.successes[0], c.rollouts[0]) for c in labelled]
    assert {tried for _, tried in counts} == {3, 10}
    assert all((tried == 3) == (right in (0, 3) and tried == 3) for right, tried in counts)
    decided = np.mean([tried == 3 for _, tried in counts])
    exact = binom.pmf([0, 3], 3, 0.8).sum()
    assert decided == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 400))
    assert coin.calls[:4] == [400, 400, 400, sum(tried == 10 for _, tried in counts)]
    assert all(
        c.labels[0] == right / tried for c, (right, tried) in zip(labelled, counts, strict=True)
    )


def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path) -> None:
    chains = [Chain("q", ("s", "t"), qid=str(i)) for i in range(10)]
    args: Any = (chains, ["1"] * 10)
    whole = label_steps(*args, Coin(), tmp_path / "a", batch=3)
    killed = Coin(fail_at=9)
    with pytest.raises(KeyboardInterrupt):
        label_steps(*args, killed, tmp_path / "b", batch=3)
    done = sorted(path.name for path in (tmp_path / "b").glob("*.jsonl"))
    assert done == ["00000.jsonl"]
    again = Coin()
    assert label_steps(*args, again, tmp_path / "b", batch=3) == whole
    files = [{p.name: p.read_bytes() for p in (tmp_path / x).iterdir()} for x in "ab"]
    assert files[0] == files[1]
    assert sorted(files[0]) == [f"0000{i}.jsonl" for i in range(4)] + [SETTINGS]
    third = Coin()
    assert label_steps(*args, third, tmp_path / "b", batch=3) == whole
    assert third.calls == []
    assert [c.qid for c in read(tmp_path / "a")] == [str(i) for i in range(10)]
    assert label_steps(*args, Coin(), tmp_path / "c", batch=3, seed=1) != whole


def test_counts_that_a_chain_brings_are_added_to(tmp_path: Path) -> None:
    chain = Chain("q", ("s", "t"), successes=(1, None), rollouts=(2, None), labels=(0.5, None))
    (labelled,) = label_steps([chain], ["1"], Coin(1.0), tmp_path, minimum=3, maximum=6)
    assert (labelled.successes, labelled.rollouts) == ((5, 3), (6, 3))


def test_what_is_no_completion_is_not_counted(tmp_path: Path) -> None:
    chains = [Chain("q", ("s",))] * 300
    labelled = label_steps(chains, ["1"] * 300, Coin(0.5, silent=0.5), tmp_path / "a", batch=300)
    assert min(c.rollouts[0] or 0 for c in labelled) < 4
    assert np.mean([c.labels[0] for c in labelled if c.rollouts[0]]) == pytest.approx(0.5, abs=0.1)
    bare = labelled[next(i for i, chain in enumerate(labelled) if not chain.rollouts[0])]
    assert (bare.labels, bare.successes, bare.rollouts) == ((None,), (0,), (0,))


def test_no_label_at_all_is_an_error_that_leaves_the_folder_free(tmp_path: Path) -> None:
    chains = [Chain("q", ("s",))] * 3
    with pytest.raises(ValueError) as refusal:
        label_steps(chains, ["1"] * 3, Coin(silent=1.0), tmp_path, batch=2, minimum=2, maximum=4)
    assert (
        "no step of the first 2 solutions got a label: 8 of 8 completions failed, or were cut "
        in (says := str(refusal.value))
    )
    assert "policy was coin. Raise --max-tokens" in says
    assert "judge" not in says
    with pytest.raises(ValueError, match=r"0 of 2 completions .* the judge left 2 undecided"):
        label_steps(chains[:1] * 2, ["x"] * 2, Coin(1.0), tmp_path, Silent(), minimum=1, maximum=1)
    assert len(label_steps(chains, ["1"] * 3, Coin(1.0), tmp_path, seed=1)) == 3


class Says:
    """Says right of the first answer and nothing of the others; notes what it is asked."""

    def __init__(self, name: str = "judge") -> None:
        self.name = name
        self.asked: list[Any] = []

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[bool | None]:
        self.asked.extend(zip(prompts, answers, references, strict=True))
        return [True, *[None] * (len(prompts) - 1)]


class Silent(Says):
    """Decides nothing."""

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[bool | None]:
        return [None] * len(prompts)


def test_rules_come_before_the_judge() -> None:
    judge = Says()
    responses = ["A: 3.0", "A: 4", "A: three", None, "", "A: drei"]
    wanted = ["3"] * 6
    verdicts = judged(list("abcdef"), responses, wanted, judge)
    assert verdicts == [True, False, True, None, False, None]
    assert judge.asked == [("c", "three", "3"), ("f", "drei", "3")]
    assert judged(list("abcdef"), responses, wanted) == [True, False, False, None, False, False]


def test_a_folder_of_other_rollouts_is_refused(tmp_path: Path) -> None:
    label_steps([CHAIN], ["4"], Coin(), tmp_path)
    with pytest.raises(ValueError, match=r"of other settings: maximum=8 \(now 9\), seed=0 \(now 1"):
        label_steps([CHAIN], ["4"], Coin(), tmp_path, maximum=9, seed=1)
    with pytest.raises(ValueError, match="of other settings: chains="):
        label_steps([CHAIN], ["3"], Coin(), tmp_path)
    with pytest.raises(ValueError, match=r"of other settings: judge=None \(now 'strict'\)"):
        label_steps([CHAIN], ["4"], Coin(), tmp_path, Says("strict"))
    label_steps([CHAIN], ["4"], Coin(), tmp_path / "judged", Says("strict"))
    with pytest.raises(ValueError, match=r"judge='strict' \(now 'lenient'\)"):
        label_steps([CHAIN], ["4"], Coin(), tmp_path / "judged", Says("lenient"))
    (tmp_path / SETTINGS).unlink()
    with pytest.raises(ValueError, match="not shards"):
        label_steps([CHAIN], ["4"], Coin(), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"minimum": 0}, "1 <= minimum <= maximum.*minimum=0"),
        ({"minimum": 9}, "minimum=9, maximum=8"),
        ({"batch": 0}, "batch=0"),
        ({"references": []}, "references must be one per chain; got 0 for 1"),
        ({"chains": [Chain("q", ())]}, "label_steps: 1 of 1 chains have no steps: chains 0"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    given = {"chains": [CHAIN], "references": ["4"], "policy": Coin(), "folder": tmp_path}
    with pytest.raises(ValueError, match=says):
        label_steps(**{**given, **wrong})


def test_the_arithmetic_policy_completes_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ArithmeticPolicy()
    monkeypatch.setattr(policy, "walk", lambda start, moves, draw: solve(start, moves))
    sure = ArithmeticCompletion(policy)
    draw = np.random.default_rng(0)
    prompts = ["clean_1 : 1 +2 *3 -4", "1 +2 *3", "1 +2 *3"]
    completions = sure.complete(prompts, [["1+2 is 0"], CHAIN.steps, []], draw)
    assert completions[:2] == ["0*3 is 0\n0-4 is 1", ""]
    assert completions[2] in ("1+2 = 3\n3*3 = 4", "1+2 is 3\n3*3 is 4")
    for wrong in ("", "x +1", "7 +1", "1 +5", "1 /2", "1 +"):
        with pytest.raises(ValueError, match=r"arithmetic simulates .* this is none"):
            sure.complete([wrong], [[]], draw)
    for wrong in ("", "3", "so x", "1+2 = 7"):
        with pytest.raises(ValueError, match=r"goes on from steps such as .* this does not"):
            sure.complete(["1 +2 *3"], [[wrong]], draw)


def test_counts_stay_within_a_chain() -> None:
    counts = RolloutCounts([CHAIN, Chain("q", ("s",))], 1, 1)
    assert counts.extend(["1", "2"], Coin(1.0), None, np.random.default_rng(0)) == 3
    assert [c.successes for c in counts.chains()] == [(1, 1), (0,)]
    assert json.dumps([c.labels for c in counts.chains()]) == "[[1.0, 1.0], [0.0]]"
