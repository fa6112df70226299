"""Rollouts and verdicts from a client, with a simulated model that does arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaopt.llm import BudgetSpent, Client, Message, SimulatedLM
from metaopt.problems.process_reward.data.arithmetic_policy import ArithmeticPolicy
from metaopt.problems.process_reward.data.formats import Chain
from metaopt.problems.process_reward.labelling import llm
from metaopt.problems.process_reward.labelling.arithmetic import ArithmeticCompletion
from metaopt.problems.process_reward.labelling.llm import ClientCompletion, ClientJudge
from metaopt.problems.process_reward.labelling.rollouts import label_steps

POLICY = ArithmeticPolicy(seed=0)
CHAIN = Chain("1 +2 *3 -4", ("1+2 = 3", "3*3 = 4"))
WORDS = dict(zip("01234", ("none", "one", "two", "three", "four"), strict=True))


def policy(spoken: bool = False, **options: Any) -> SimulatedLM:
    """A model that goes on from the steps it reads, as the arithmetic policy does."""

    def answer(role: str, messages: Sequence[Message], key: int) -> str:
        asked = messages[0]["content"]
        prompt = asked.split("Question:\n")[1].split("\n")[0]
        if role == "judge":
            right, said = asked.split("Right answer: ")[1].split("\n")[:2]
            return "Correct." if WORDS[right] == said.removeprefix("Answer: ") else "incorrect"
        prefix = asked.split("Solution:\n")[1].split("\n")
        draw = np.random.default_rng(key)
        (rest,) = ArithmeticCompletion(POLICY).complete([prompt], [prefix], draw)
        last = (rest or prefix[-1])[-1]
        return f"{rest}\nFinal answer: {WORDS[last] if spoken else last}"

    return SimulatedLM(answer, **options)


def exact(answer: int) -> float:
    """Return the chance that the policy gets from 4 - 4 to the answer."""
    return float(POLICY.table[4 + 3, 4, answer])


def test_labels_from_a_client_are_the_models_success(tmp_path: Path) -> None:
    client = Client({"policy": policy()})
    labelled = label_steps(
        [CHAIN] * 60, ["0"] * 60, ClientCompletion(client), tmp_path, minimum=8, maximum=8
    )
    share = sum(c.successes[1] or 0 for c in labelled) / 480
    assert share == pytest.approx(exact(0), abs=4 * np.sqrt(exact(0) * (1 - exact(0)) / 480))
    assert 0.02 < exact(0) < 0.98
    assert client.spent("policy")["lm_calls"] == 2 * 480
    client.close()


def test_a_judge_decides_what_rules_cannot(tmp_path: Path) -> None:
    models = {"policy": policy(spoken=True), "judge": policy()}
    client = Client(models)
    rollouts = ClientCompletion(client)
    args: Any = ([CHAIN] * 40, ["0"] * 40, rollouts)
    labelled = label_steps(*args, tmp_path / "a", ClientJudge(client), minimum=8, maximum=8)
    share = sum(c.successes[1] or 0 for c in labelled) / 320
    assert share == pytest.approx(exact(0), abs=4 * np.sqrt(exact(0) * (1 - exact(0)) / 320))
    assert {c.rollouts for c in labelled} == {(8, 8)}
    without = label_steps(*args, tmp_path / "b", minimum=8, maximum=8)
    assert {c.successes for c in without} == {(0, 0)}
    client.close()


def test_names_tell_whatever_decides_rollouts_and_verdicts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client({"policy": policy(), "judge": policy()})
    names = [
        ClientCompletion(client, **options).name
        for options in ({}, {"temperature": 0.7}, {"max_tokens": 64}, {"prefill": True})
    ]
    judge = ClientJudge(client).name
    monkeypatch.setattr(llm, "CONTINUE", "Go on. {prompt}|{prefix}")
    monkeypatch.setattr(llm, "COMPARE", "{prompt} {answer} {reference}")
    names.append(ClientCompletion(client).name)
    assert len(set(names)) == len(names)
    assert judge != ClientJudge(client).name
    client.close()


def test_another_template_does_not_go_on_with_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client({"policy": policy()})
    args: Any = ([CHAIN], ["0"])
    label_steps(*args, ClientCompletion(client), tmp_path)
    monkeypatch.setattr(llm, "CONTINUE", "Go on. {prompt}|{prefix}")
    other = ClientCompletion(client)
    with pytest.raises(ValueError, match=r"of other settings: policy='.* template=\w{8}' \(now"):
        label_steps(*args, other, tmp_path)
    client.close()


def test_a_recorded_run_replays(tmp_path: Path) -> None:
    class Paid(SimulatedLM):
        deterministic = False

    lm = policy()
    paid = Paid(lm._answer)
    file = tmp_path / "answers"
    runs = []
    for mode in ("record", "replay"):
        client = Client({"policy": paid}, mode, file, limits={"lm_calls": 100, "tokens": 1e6})
        runs.append(label_steps([CHAIN], ["0"], ClientCompletion(client), tmp_path / mode))
        sent = client.sent
        client.close()
    assert runs[0] == runs[1]
    assert not any(sent.values())


def test_a_spent_budget_stops_between_shards_and_keeps_them(tmp_path: Path) -> None:
    chains = [Chain(CHAIN.prompt, CHAIN.steps, qid=str(i)) for i in range(4)]
    options: Any = {"minimum": 2, "maximum": 2, "batch": 1}
    client = Client({"policy": policy()}, limits={"lm_calls": 6})
    with pytest.raises(BudgetSpent):
        label_steps(chains, ["0"] * 4, ClientCompletion(client), tmp_path, **options)
    client.close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    client = Client({"policy": policy()})
    labelled = label_steps(chains, ["0"] * 4, ClientCompletion(client), tmp_path, **options)
    assert client.spent()["lm_calls"] == 12
    assert len(labelled) == 4
    client.close()


def test_a_reply_that_is_no_verdict_is_none() -> None:
    def answer(role: str, messages: Sequence[Message], key: int) -> str:
        return messages[0]["content"].split("Answer: ")[-1].split("\n")[0]

    client = Client({"judge": SimulatedLM(answer)})
    said = ["Correct.", "**incorrect**", "correct, I think", "", "not correct"]
    verdicts = ClientJudge(client)(["q"] * 5, said, ["r"] * 5)
    assert verdicts == [True, False, None, None, None]
    client.close()


def test_braces_in_a_question_stay() -> None:
    asked: list[str] = []

    def answer(role: str, messages: Sequence[Message], key: int) -> str:
        asked.append(messages[0]["content"])
        return "x"

    client = Client({"policy": SimulatedLM(answer)})
    prompts, prefixes = ["{prefix} {0}"], [["a", "{prompt}"]]
    ClientCompletion(client).complete(prompts, prefixes, np.random.default_rng(0))
    assert "Question:\n{prefix} {0}\n" in asked[0]
    assert asked[0].endswith("Solution:\na\n{prompt}")
    client.close()


def test_wrong_arguments_are_named() -> None:
    client = Client({"policy": policy()})
    with pytest.raises(ValueError, match="role='judge' has no model; roles are policy"):
        ClientJudge(client)
    with pytest.raises(ValueError, match="ClientCompletion needs temperature > 0"):
        ClientCompletion(client, temperature=0.0)
    client.close()
