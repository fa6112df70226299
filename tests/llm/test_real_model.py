"""SmolLM2-135M-Instruct in this process: what it says, what it holds likely, and a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import smollm2

from metaopt.llm import Client, Parameters, Reply, Request, user
from metaopt.llm.transformers_lm import TransformersLM

pytestmark = [pytest.mark.slow, pytest.mark.realmodel]

SENTENCE = "Janet has 16 eggs. She eats 3 and sells the rest for $2 each. How much does she make?"
PAIRS = {
    "Name the capital of France.": ("The capital is Paris.", "Bananas grow on cheese."),
    "Say what 2 + 3 is.": ("2 + 3 = 5.", "The moon is a spoon."),
    "Give the opposite of hot.": ("The opposite of hot is cold.", "It is a bicycle."),
    "Translate hello into Spanish.": ("Hello is hola.", "Hello is carpet."),
    "Name a colour of the sky.": ("The sky is blue.", "The sky is made of shoes."),
    "Say how many days a week has.": ("A week has seven days.", "Ninety elephants."),
    "Name an animal that barks.": ("A dog barks.", "A stone barks."),
    "Say what bees make.": ("Bees make honey.", "Bees make trousers."),
    "Name the season after winter.": ("It is spring.", "Tuesday sings after winter."),
    "Say what people drink when thirsty.": ("People drink water.", "People drink bricks."),
}
"""Objectives, each with a right and an absurd response."""
PERPLEXITY = 19.72


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client({"judge": TransformersLM(str(smollm2()), dtype="float32")})
    yield client
    client.close()


def ask(client: Client, *requests: Request) -> list[Reply]:
    replies = client.ask(requests)
    assert all(isinstance(reply, Reply) for reply in replies), replies
    return [reply for reply in replies if isinstance(reply, Reply)]


def test_it_knows_facts(client: Client) -> None:
    facts = {
        "What is the capital of France?": "Paris", "What is 2 + 3?": "5",
        "What is the opposite of hot?": "cold", "How do you say hello in Spanish?": "hola",
    }  # fmt: skip
    replies = ask(client, *(Request("judge", user(q), Parameters(max_tokens=16)) for q in facts))
    for reply, fact in zip(replies, facts.values(), strict=True):
        assert fact.lower() in reply.text.lower()


def test_the_likelihood_of_a_text_is_the_loss_of_transformers(client: Client) -> None:
    """And its perplexity that of the weights that were published, within their 4 bits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)
    asked = tokenizer.apply_chat_template(
        [dict(m) for m in user("Say something.")], tokenize=False, add_generation_prompt=True
    )
    before = len(tokenizer(asked)["input_ids"])
    ids = torch.tensor([tokenizer(asked + SENTENCE)["input_ids"]])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < before, -100)
    with torch.no_grad():
        loss = float(model(ids, labels=labels).loss)
    (reply,) = ask(
        client, Request("judge", user("Say something."), Parameters(choices=(SENTENCE,)))
    )
    assert reply.likelihoods[0].tokens == ids.shape[1] - before
    assert reply.likelihoods[0].mean == pytest.approx(-loss, abs=1e-4)
    assert math.exp(loss) == pytest.approx(PERPLEXITY, abs=0.2)


def test_p_of_yes_and_the_likelihood_know_right_from_absurd(client: Client) -> None:
    question = "Does the response meet the objective? Answer with one word: Yes or No."
    orders = {"yes": 0, "likelihood": 0}
    for objective, responses in PAIRS.items():
        judged = ask(
            client,
            *(
                Request(
                    "judge",
                    user(f"{question}\n\nObjective: {objective}\n\nResponse:\n{response}"),
                    Parameters(choices=(" No", " Yes"), prefill="Answer:"),
                )
                for response in responses
            ),
        )
        right, absurd = (r.probabilities[1] / sum(r.probabilities) for r in judged)
        orders["yes"] += right > absurd
        likely = ask(
            client,
            *(Request("judge", user(objective), Parameters(choices=(r,))) for r in responses),
        )
        orders["likelihood"] += likely[0].likelihoods[0].mean > likely[1].likelihoods[0].mean
    assert orders["yes"] >= 7
    assert orders["likelihood"] >= 7


@pytest.mark.parametrize("scoring", ["yes_no", "likelihood"])
def test_a_whole_run(metaopt: Any, scoring: str) -> None:
    done = metaopt(
        "problem=template_evolution/judge_calibration", "llm=transformers",
        f"llm.path={smollm2().resolve()}", "llm.dtype=float32", "problem.data.questions=6",
        "problem.labelled=8", "problem.held_out=1", "outer_steps=1",
        f"scoring@problem.scoring=template_evolution/{scoring}",
        "problem.client.limits={lm_calls: 50}", "figures=false", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads(Path("run", "result.json").read_text())
    assert 8 < result["budget"]["lm_calls"] <= 12  # equal responses are asked about once
    assert result["metrics"]["judge/coverage"] == 1
    assert ("judge/choice_mass" in result["metrics"]) is (scoring == "yes_no")
