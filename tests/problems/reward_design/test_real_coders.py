"""A coder behind a server, which fails at times, and one in this process, which cannot write."""

import pytest
from servers import Scripted, completion, error, tiny_model

from metaopt.environments import MountainCar
from metaopt.llm import Client, NotUnderstood, Parameters, Rejected
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.llm.transformers_lm import TransformersLM
from metaopt.problems.reward_design.coder import Coder
from metaopt.problems.reward_design.language import parse, parse_python
from metaopt.problems.reward_design.prompts import Assignment, asking
from metaopt.problems.reward_design.variables import of

pytestmark = pytest.mark.slow

NAMES = of(MountainCar()).names
QUESTION = asking(Assignment("Reach the goal.", NAMES))
FUNCTION = """Energy must rise.
```python
def reward(energy, energy2, terminated):
    gain = energy2 - energy
    return 500 * gain + terminated
```
"""


def read(answer):
    return (parse_python if answer.python else parse)(answer.text, NAMES).text


def coder_of(lm, mode="live", cassette=None, **parameters):
    client = Client({"coder": lm}, mode, cassette, limits={"lm_calls": 20, "lm_requests": 20})
    return Coder(client, read, Parameters(0.7, **parameters))


def test_a_server_that_fails_at_first_writes_python_and_is_replayed_without_it(tmp_path):
    def script(asked):
        if len(server.log) == 1:
            return error(500, "overloaded", "0")
        told = len(asked.body["messages"]) > 1
        return completion(FUNCTION if told else "```python\nimport os\nos.remove('x')\n```")

    cassette = tmp_path / "answers.cassette"
    with Scripted(script) as server:
        lm = OpenAICompatibleLM("coder-1", server.url, None)
        coder = coder_of(lm, "record", cassette)
        (reward,) = coder(QUESTION, 0)
        coder.client.close()
    assert reward.splitlines()[0] == "gain := 500 * (energy2 - energy)"
    assert (coder.answers, coder.unreadable) == (2, 1)
    assert len(server.log) == 3
    assert "import is not in the language" in server.log[2].body["messages"][-1]["content"]
    again = coder_of(OpenAICompatibleLM("coder-1", server.url, None), "replay", cassette)
    assert again(QUESTION, 0) == [reward]
    assert sum(again.client.sent.values()) == 0
    again.client.close()


def test_a_wrong_key_stops_with_its_own_error():
    with Scripted(lambda asked: error(401, "no such key")) as server:
        coder = coder_of(OpenAICompatibleLM("coder-1", server.url, None))
        with pytest.raises(Rejected, match="HTTP 401"):
            coder(QUESTION, 0)
        coder.client.close()


def test_a_model_in_this_process_that_cannot_write_rewards_is_said_so(tmp_path):
    folder = tiny_model(tmp_path, context=8192)
    coder = coder_of(TransformersLM(str(folder)), max_tokens=2)
    with pytest.raises(NotUnderstood, match="none of 3 answers holds a reward"):
        coder(QUESTION, 0, first=True)
    assert (coder.answers, coder.unreadable) == (3, 3)
    coder.client.close()
