"""The coder: what it writes is parsed, what cannot be read goes back, failures keep their types."""

import pytest

from metaopt.llm import (
    CassetteMiss,
    Client,
    NotUnderstood,
    Parameters,
    Rejected,
    Reply,
    SimulatedLM,
    Usage,
    user,
)
from metaopt.problems.reward_design.coder import Coder

QUESTION = user("Write a reward.")


def block(text):
    return f"```reward\n{text}\n```"


def read(answer):
    """Take the reward `good`, with anything behind it; everything else is refused."""
    if not answer.text.startswith("good"):
        raise ValueError(f"`{answer.text}` is no variable.")
    return answer.text


def coder_of(answer, attempts=3, **client):
    lm = SimulatedLM(answer, "scripted")
    return Coder(Client({"coder": lm}, **client), read, Parameters(1.0), attempts)


def test_an_unreadable_reply_goes_back_with_what_is_wrong_and_is_counted():
    conversations = []

    def answer(role, messages, key):
        conversations.append([m["content"] for m in messages])
        return block("good" if len(messages) == 3 else "bad")

    coder = coder_of(answer)
    assert coder(QUESTION, 0) == ["good"]
    assert (coder.answers, coder.unreadable) == (2, 1)
    assert coder.client.spent("coder")["lm_calls"] == 2
    first, second = conversations
    assert second[:2] == [first[0], block("bad")]
    assert "`bad` is no variable." in second[2]


def test_a_reply_without_a_reward_and_one_that_is_cut_go_back():
    complaints = []

    def answer(role, messages, key):
        complaints.append(messages[-1]["content"])
        return "I would rather not."

    coder = coder_of(answer, attempts=2)
    assert coder(QUESTION, 0) == []
    assert "no block that starts with ```reward" in complaints[1]
    assert (coder.answers, coder.unreadable) == (2, 2)


def test_hostile_code_is_refused_and_not_run(tmp_path):
    hostile = f"__import__('pathlib').Path('{tmp_path}/run').touch()"
    coder = coder_of(lambda role, messages, key: f"```python\n{hostile}\n```", attempts=1)
    assert coder(QUESTION, 0) == []
    assert not (tmp_path / "run").exists()


def test_several_rewards_are_asked_for_together_and_only_unread_ones_again():
    asked = []

    def answer(role, messages, key):
        asked.append(len(messages))
        return block(f"good {key}" if len(messages) == 3 or key % 2 else "bad")

    coder = coder_of(answer)
    rewards = coder(QUESTION, 1, count=8)
    assert len(set(rewards)) == 8
    assert asked.count(1) == 8
    assert asked.count(3) == coder.unreadable > 0
    assert coder(QUESTION, 1, count=8) == rewards
    assert coder(QUESTION, 2, count=8) != rewards


def test_a_first_question_without_any_reward_is_an_error_that_shows_no_words():
    coder = coder_of(lambda role, messages, key: "Sorry, secret words.")
    with pytest.raises(NotUnderstood, match="none of 3 answers holds a reward") as error:
        coder(QUESTION, 0, first=True)
    assert "secret" not in str(error.value)
    assert "last one: there is no block" in str(error.value)
    assert "Xxxxx" not in str(error.value)


def test_the_error_of_a_first_question_says_why_without_the_names_of_the_answer():
    coder = coder_of(lambda role, messages, key: block("bad"))
    with pytest.raises(NotUnderstood, match=r"last one: `\.\.\.` is no variable") as error:
        coder(QUESTION, 0, first=True)
    assert "`bad`" not in str(error.value)


def test_a_spent_budget_ends_the_dialogue_with_what_there_is():
    coder = coder_of(lambda role, messages, key: block("good"), limits={"lm_calls": 3})
    assert len(coder(QUESTION, 0, count=8)) == 3
    assert "budget of 3 lm_calls" in coder.client.stopped
    assert coder(QUESTION, 1) == []


class Failing:
    """Refuses every request."""

    model, deterministic = "failing", True

    async def chat(self, role, messages, parameters, rollout):
        raise Rejected("HTTP 401: wrong key", role)

    async def close(self):
        pass


def test_a_refused_request_stops_the_run_with_its_own_error():
    coder = Coder(Client({"coder": Failing()}), read, Parameters())
    with pytest.raises(Rejected, match="wrong key"):
        coder(QUESTION, 0)


class Counting:
    """Answers with the number of the request, as a server whose answers cannot be repeated."""

    model, deterministic = "counting", False

    def __init__(self):
        self.asked = 0

    async def chat(self, role, messages, parameters, rollout):
        self.asked += 1
        return Reply(block(f"good {self.asked}"), Usage(1, 1))

    async def close(self):
        pass


def test_a_replay_asks_nothing_and_says_what_it_lacks(tmp_path):
    def coder_at(mode):
        client = Client({"coder": Counting()}, mode, tmp_path / "answers.cassette")
        return Coder(client, read, Parameters(1.0))

    first, again = coder_at("record"), coder_at("replay")
    rewards = first(QUESTION, 0, count=2)
    assert again(QUESTION, 0, count=2) == rewards
    assert again.client.lms["coder"].asked == 0
    with pytest.raises(CassetteMiss):
        again(QUESTION, 1)
    for coder in (first, again):
        coder.client.close()
