"""Scores by what a judge holds likely, beside those that it writes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_judges import Paid, by_length, make, run, written

from metaopt.data.solutions import Solutions, solutions
from metaopt.llm import (
    Client,
    Likelihood,
    NotUnderstood,
    Parameters,
    Reply,
    SimulatedLM,
    Usage,
    user,
)
from metaopt.llm.chat import Message, chosen
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.llm.rubric import FOOTER, graded
from metaopt.problems.template_evolution import (
    CanaryWorld,
    ExpectedChoice,
    ResponseLikelihood,
    TemplateEvolution,
    WrittenScore,
    load_judge,
)
from metaopt.problems.template_evolution.criteria_judge import FIRST, criteria_judge
from metaopt.problems.template_evolution.scoring import centre, scoring_of

YES_NO = ExpectedChoice(("No", "Yes"), "Is it right?")
DIGITS = ExpectedChoice(tuple("0123456789"), "Give a digit.", "Score: ", centred=True)
WRITING = Parameters(max_tokens=7)


@pytest.fixture
def data(tmp_path: Path) -> Solutions:
    return solutions(str(written(tmp_path)))


def reply(*probabilities: float) -> Reply:
    return Reply("", likelihoods=tuple(Likelihood(math.log(p)) for p in probabilities))


def test_p_of_yes_is_against_p_of_no() -> None:
    score, mass = YES_NO.read(reply(0.3, 0.1))
    assert score == pytest.approx(1 + 9 * 0.1 / 0.4)
    assert mass == pytest.approx(0.4)


def test_the_expected_digit_is_the_sum_of_k_times_p_of_k() -> None:
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(11))[:10]
    score, mass = DIGITS.read(reply(*p))
    assert score == pytest.approx(1 + sum(k * p[k] for k in range(10)) / p.sum())
    assert mass == pytest.approx(p.sum())


def test_the_likelihood_is_that_of_a_token_on_average() -> None:
    said = Reply("", likelihoods=(Likelihood(-3.0, 4),))
    assert ResponseLikelihood().read(said).score == pytest.approx(1 + 9 * math.exp(-0.75))
    assert ResponseLikelihood().read(said).mass is None
    never = Reply("", likelihoods=(Likelihood(-math.inf),))
    assert ResponseLikelihood().read(never).score is None


def test_what_is_asked() -> None:
    template = FIRST.render()
    asked = WrittenScore().request(template, "q", "r", WRITING)
    assert asked is not None
    assert asked.messages == user(f"{template}\n\nObjective: q\n\nResponse:\nr")
    assert asked.parameters == WRITING
    chosen = DIGITS.request(template, "q", "r", WRITING)
    assert chosen is not None
    body = template.removesuffix(FOOTER)
    assert chosen.messages == user(f"{body}Give a digit.\n\nObjective: q\n\nResponse:\nr")
    assert chosen.parameters == Parameters(choices=tuple("0123456789"), prefill="Score: ")
    likely = ResponseLikelihood().request(template, "q", " r\n", WRITING)
    assert likely is not None
    assert (likely.messages, likely.parameters) == (user("q"), Parameters(choices=("r",)))
    assert ResponseLikelihood().request(template, "q", " ", WRITING) is None


def test_centred_scores_say_nothing_of_their_objective() -> None:
    scores = [2.0, 4.0, None, 8.0, 9.0, 5.0]
    objectives = ["a", "a", "a", "b", "b", "c"]
    centred = centre(scores, objectives)
    assert centred[2] is None
    assert centred[5] == pytest.approx(5.5)
    logits = [math.log((s - 1) / (10 - s)) for s in centred if s is not None]
    raw = [math.log((s - 1) / (10 - s)) for s in scores if s is not None]
    assert logits[0] + logits[1] == pytest.approx(0)
    assert logits[2] + logits[3] == pytest.approx(0)
    assert logits[1] - logits[0] == pytest.approx(raw[1] - raw[0])
    assert centre([1.0, 10.0, 10.0], ["a", "a", "a"])[1] <= 10


def test_simulated_judges_have_the_mean_of_their_sum() -> None:
    for logit in (-40.0, -1.0, 0.3, 40.0):
        p = 1 / (1 + math.exp(-logit))
        for count in (2, 10):
            given = graded(logit, count)
            assert sum(given) == pytest.approx(1)
            assert sum(k * q for k, q in enumerate(given)) == pytest.approx((count - 1) * p)
    assert graded(1.0, 1) == [0.0]


@pytest.mark.parametrize("scoring", [WrittenScore(), YES_NO, DIGITS, ResponseLikelihood(True)])
def test_a_scoring_survives_json(scoring: Any) -> None:
    assert scoring_of(json.loads(json.dumps(scoring.to_dict()))) == scoring


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"name": "guess"}, "one of written, choices, likelihood"), ({"name": "choices"}, "question")],
)
def test_an_unknown_scoring_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scoring_of(fields)


def test_a_template_that_asks_for_something_else_is_refused(data: Solutions) -> None:
    own = "Grade it.\nScore: <number> please"
    with pytest.raises(ValueError, match=r"asks for 'Score: <number>', while scoring asks for one"):
        make(data, template=own, scoring=YES_NO, judge=Paid(by_length), writer=Paid(by_length))
    with pytest.raises(ValueError, match="template must be rubric, logistic, or a text"):
        make(data, template="Grade it.", judge=Paid(by_length), writer=Paid(by_length))
    make(data, template="Grade it.", scoring=YES_NO, judge=Paid(by_length), writer=Paid(by_length))
    with pytest.raises(ValueError, match="two texts or more"):
        ExpectedChoice(("Yes",), "Is it?")
    with pytest.raises(ValueError, match="'1' begins '10'"):
        ExpectedChoice(("1", "10"), "Which?")


def test_a_judge_of_criteria_scores_without_rounding(data: Solutions) -> None:
    by_choice, by_words = make(data, scoring=YES_NO), make(data)
    fine, rounded = (np.array(p.examine(FIRST.render()), float) for p in (by_choice, by_words))
    assert 0 < np.abs(fine - rounded).max() <= 0.25 + 1e-9


@pytest.mark.slow
def test_a_loaded_judge_scores_as_it_was_calibrated(data: Solutions, tmp_path: Path) -> None:
    problem = make(data, scoring=YES_NO)
    engine = run(problem, 3)
    assert engine.inner["mass"] == pytest.approx(1)
    problem.report.deliver(engine.optimizer.solution, engine.inner, [], tmp_path)
    record = json.loads((tmp_path / "judge.json").read_text())
    assert record["provenance"]["probability of all choices together"] == pytest.approx(1)
    judge = load_judge(tmp_path)
    assert judge.scoring == YES_NO
    pairs = [(data.queries[x.query], x.response) for x in problem.test[:5]]
    assert judge.score(pairs) == problem.examine(engine.optimizer.solution)[:5]


class Likely:
    """A judge that costs something; a response is the likelier the fewer lines it has."""

    model, deterministic = "likely", False

    def __init__(self, mass: float = 0.2) -> None:
        self.mass, self.asked = mass, 0

    async def chat(
        self, role: str, messages: Sequence[Message], parameters: Parameters, rollout: int
    ) -> Reply:
        self.asked += 1
        texts = [*parameters.choices, messages[0]["content"]]
        lines = max(text.count("goes on") for text in texts)
        p = self.mass / (2 + lines)
        given = [self.mass - p, p][-len(parameters.choices) :]
        likelihoods = [Likelihood(math.log(q)) for q in given]
        return chosen(parameters.choices, likelihoods, Usage(len(texts[0]), 0), self.model)

    async def close(self) -> None:
        pass


def test_a_small_mass_is_warned_about_once_and_logged(
    data: Solutions, caplog: pytest.LogCaptureFixture
) -> None:
    problem = make(data, judge=Likely(), scoring=YES_NO)
    with caplog.at_level(logging.WARNING):
        engine = run(problem, 3)
    (message,) = [m for m in caplog.messages if "probability together" in m]
    assert "0.200 of the probability together, below 0.5" in message
    assert "problem.scoring.prefill" in message
    numbers = problem.evaluate(problem.template, engine.inner, 0).metrics
    assert numbers["judge/choice_mass"] == pytest.approx(0.2)


def test_likelihood_reads_no_template_so_none_is_searched_for(
    data: Solutions, caplog: pytest.LogCaptureFixture
) -> None:
    lm, free = Likely(), partial(Client, limits={"lm_calls": 9999})
    problem = make(data, judge=lm, client=free, scoring=ResponseLikelihood())
    assert "reads no template, so that all outer steps judge alike" in caplog.text
    engine = run(problem, 4)
    assert engine.optimizer.solution == problem.template
    rows = {(x.query, x.response) for x in problem.labelled}
    assert lm.asked == len(rows)
    assert problem.client.spent("template")["lm_calls"] == 0


def test_a_judge_that_never_says_a_choice_stops_the_run(data: Solutions) -> None:
    lm = SimulatedLM(lambda role, messages, key: "Score: 5")
    with pytest.raises(
        NotUnderstood, match="60 of 60 replies give none of the choices 'No', 'Yes'"
    ):
        run(make(data, judge=lm, scoring=YES_NO), 1)


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (
            SimulatedLM(lambda role, messages, key: "Score: 5", "dice"),
            "'dice/0', which is simulated",
        ),
        (OpenAICompatibleLM("m", "http://127.0.0.1:9/v1", None), "'m at http.*of single tokens"),
    ],
)
def test_likelihood_takes_a_model_in_this_process(data: Solutions, judge: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"llm=transformers; the judge is {words}"):
        make(data, judge=judge, scoring=ResponseLikelihood())
    with pytest.raises(ValueError, match="takes a model in this process"):
        TemplateEvolution(CanaryWorld(2), scoring=ResponseLikelihood())


@pytest.mark.parametrize("centred", [False, True])
def test_template_evolution_by_p_of_yes(centred: bool) -> None:
    scoring = ExpectedChoice(("No", "Yes"), "Is it right?", centred=centred)
    problem = TemplateEvolution(CanaryWorld(2), scoring=scoring, candidates=4, inherited=2,
                                prompts_per_step=2, inner_steps=1)  # fmt: skip
    inner = problem.init_inner(problem.task.template, None, 0)
    inner = problem.inner_step(problem.task.template, inner, 1)
    log = inner["log"]
    assert len(log) > 8
    scores = [(c["query"], c["score"]) for c in log if c["score"] is not None]
    logits = [math.log((s - 1) / (10 - s)) for query, s in scores if query == 0]
    assert (abs(sum(logits)) < 1e-9) is centred
    numbers = problem.evaluate(problem.task.template, inner, 2).metrics
    assert 0.9 < numbers["judge/choice_mass"] <= 1
    problem.records.close()


def test_criteria_are_read_before_the_question() -> None:
    lm = criteria_judge([("q", "2+3=<<2+3=5>>5\nA: 5"), ("q", "because")])
    client = Client({"judge": lm})
    asked = [s.request(FIRST.render(), "q", "because", WRITING) for s in (YES_NO, DIGITS)]
    replies = client.ask([a for a in asked if a is not None])
    client.close()
    means = [s.read(r).score for s, r in zip((YES_NO, DIGITS), replies, strict=True)
             if isinstance(r, Reply)]  # fmt: skip
    assert means[0] == pytest.approx(means[1])
