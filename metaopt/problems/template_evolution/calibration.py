"""Judge calibration: a scoring template evolves until its scores agree with recorded outcomes.

The responses are given, each with its outcome: generated, from your own file, or GSM8K's. The
inner level picks, for every question, the response that the template scores highest; the outer
level looks for the template under which scores agree with outcomes. It is the outer loop of
template evolution (Koo et al., Align to Misalign, ICLR 2026) on data that nobody has to generate,
and what comes out is a calibrated judge with its worth on other questions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metaopt.data.solutions import Solution, Solutions
from metaopt.engine.protocols import Feedback
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.llm import LM, Client, Parameters, SimulatedLM
from metaopt.llm.rubric import parse
from metaopt.problems.template_evolution.candidates import judge
from metaopt.problems.template_evolution.criteria_judge import (
    FIRST,
    Criteria,
    RubricWriter,
    Texts,
    criteria_judge,
    logistic_rubric,
)
from metaopt.problems.template_evolution.objectives import OBJECTIVES, alignment, outer_loss
from metaopt.problems.template_evolution.prompts import Example
from metaopt.problems.template_evolution.report import (
    HELD_OUT,
    CalibrationReport,
    Scores,
    best_of,
    held_out_metrics,
    scored,
)
from metaopt.problems.template_evolution.scoring import (
    ASKED,
    Judgement,
    Scoring,
    WrittenScore,
    mean_mass,
)
from metaopt.problems.template_evolution.template_problem import TemplateProblem
from metaopt.problems.text import TextTrial

Judge = LM | Callable[[Texts], LM]


class JudgeCalibration(TemplateProblem):
    """Inner: the best-scored response of each question. Outer: the template, by its agreement.

        inner, per question:  pick the response r with the highest Judge(q, r; template)
        outer:                F(template) = objective(scores, outcomes) over the labelled examples

    One part of the questions trains: the first of them, in random order, are labelled, and the
    template is searched for, and later calibrated, on their examples alone. Nothing but `metrics`
    and the report looks at the other questions. `propose` and `screen` are for
    `metaopt.optimizers.Search`.

    A request that fails makes no score. A template that leaves too many examples without one has
    the loss +inf, so that it is not chosen on the rest; a judge whose replies to the first template
    are not understood stops the run with an error. The run ends while the budget of calls
    still lasts for the report.

    Args:
        data: queries and responses with outcomes.
        judge: a language model, or a function from the training part's (query, response) pairs to
            one, such as `criteria_judge`.
        client: makes the client from the roles, as `functools.partial(Client, ...)`.
        scoring: what the judge is asked; see `metaopt.problems.template_evolution.scoring`.
        writer: the model that rewrites templates, or `None` for a simulated `RubricWriter`.
        objective: one of `OBJECTIVES`; "mae" is the paper's.
        template: the first template: "rubric" (plausible weights), "logistic" (weights of a
            logistic regression on the labelled examples), or its text, which must ask for a last
            line `Score: <number>` where the judge writes a score, and may not where it does not.
        training: share of the questions that train.
        labelled: examples whose outcomes the search knows, >= 2, as far as the training part has
            them; whole questions, so it may be a few more.
        held_out: most questions that the report is measured on, >= 1, or `None` for all others.
        templates_in_context: templates shown to the writer, >= 1.
        examples: misjudged responses of each outcome shown to it, >= 0; 0 is a blind writer.
        coverage: least share of labelled examples with a score that makes a template legal.
        temperature: of the writer; the judge answers at 0.
        max_tokens: longest answer.
        seed: of the split.

    Raises:
        ValueError: an argument outside its range, labelled or held-out examples of one outcome
            only, a template that the writer cannot read, a paid role without a budget, or a budget
            too small for one outer step and the report.

    Cost: a call of the judge for each labelled example and outer step, one of the writer for each
    proposal, and one of the judge for each held-out example and template that is reported. A judge
    that is a function of the request reports for nothing.
    """

    metric_names = HELD_OUT

    def __init__(
        self,
        data: Solutions,
        judge: Judge = criteria_judge,
        client: Callable[[Mapping[str, LM]], Client] = Client,
        writer: LM | None = None,
        objective: str = "balanced_brier",
        template: str = "rubric",
        training: float = 0.5,
        labelled: int = 400,
        held_out: int | None = None,
        templates_in_context: int = 5,
        examples: int = 0,
        coverage: float = 0.9,
        temperature: float = 1.0,
        max_tokens: int = 512,
        seed: int = 0,
        scoring: Scoring | None = None,
    ) -> None:
        if labelled < 2 or (held_out is not None and held_out < 1):
            raise ValueError(
                f"JudgeCalibration needs labelled >= 2 and held_out >= 1 or null; got "
                f"labelled={labelled}, held_out={held_out}."
            )
        self.data, self.objective, self.seed, self.coverage = data, objective, seed, coverage
        check_choices(self, objective=OBJECTIVES)
        check_ranges(self, "0 < coverage <= 1")
        train, test = data.split(training, seed)
        self.resplit = len(test) / len(train)
        sample = _texts(data, _of(data, train))
        self.labelled = _first_questions(data, train, labelled)
        if len(self.labelled) < labelled:
            logging.getLogger(__name__).warning(
                "labelled=%d is more than the %d training responses with an outcome: all of them "
                "are used.",
                labelled,
                len(self.labelled),
            )
        self.test = _of(data, test[:held_out])
        _both_outcomes(self.labelled, "labelled", "labelled")
        _both_outcomes(self.test, "held-out", "held_out")
        criteria = Criteria.of(sample)
        lms: dict[str, LM] = {
            "judge": judge if isinstance(judge, LM) else judge(sample),
            "template": writer or SimulatedLM(RubricWriter(criteria), "rubric-writer"),
        }
        texts, outcomes = _texts(data, self.labelled), [int(r.outcome) for r in self.labelled]
        self.template = template
        if template == "rubric":
            self.template = FIRST.render()
        elif template == "logistic":
            self.template = logistic_rubric(criteria, texts, outcomes).render()
        scoring = scoring or WrittenScore()
        scoring.check(self.template, lms["judge"])
        if not scoring.reads_template:
            logging.getLogger(__name__).warning(
                "scoring=%s reads no template, so that all outer steps judge alike: one is enough.",
                scoring.name,
            )
        if isinstance(scoring, WrittenScore):
            _check_asks(self.template)
        if isinstance(lms["template"], SimulatedLM) and scoring.reads_template:
            _check_rubric(self.template)
        self.answers = Parameters(0.0, max_tokens)
        creative = Parameters(temperature, max_tokens)
        super().__init__(
            client(lms), creative, templates_in_context, examples, quoting=True, scoring=scoring
        )
        self.report = CalibrationReport(self)
        self._examined: dict[str, Scores] = {}
        free = lms["judge"].deterministic
        self._next = {
            "judge": len(self.labelled) + (0 if free else 2 * len(self.test)),
            "template": 1,
        }
        self.client.require(self._next)

    def init_outer(self, generator: Any) -> str:
        """Return the first template."""
        return self.template

    def init_inner(self, outer: str, inner: Mapping[str, Any] | None, key: int) -> dict[str, Any]:
        """Return a run in which nothing is scored yet; `tried` is what earlier runs came to."""
        number = inner["round"] + 1 if inner else 1
        self.client.begin(number)
        tried = list(inner["tried"]) if inner else []
        return {"round": number, "template": outer, "scores": None, "mass": None, "tried": tried}

    def inner_step(self, outer: str, inner: dict[str, Any], key: int) -> dict[str, Any]:
        """Return the state with every labelled example scored."""
        if inner["scores"] is not None:
            return inner
        judgements = self.judge(self.client, outer, self.labelled, inner["round"] == 1)
        scores = [j.score for j in judgements]
        coverage = 1 - scores.count(None) / len(scores)
        trial = {"template": outer, "loss": self._loss(scores), "coverage": coverage}
        tried = [*inner["tried"], trial]
        return {
            **inner,
            "scores": scores,
            "mass": mean_mass(j.mass for j in judgements),
            "tried": tried,
        }

    def evaluate(self, outer: str, inner: dict[str, Any], key: int) -> Feedback:
        """Return the template's loss on the labelled examples; their scores are the artifacts."""
        scores: Scores = inner["scores"] or [None] * len(self.labelled)
        p, y = scored(scores, self.labelled)
        numbers = {
            "judge/coverage": len(p) / len(self.labelled),
            "inner/success": best_of(scores, self.labelled),
        }
        if inner["mass"] is not None:
            numbers["judge/choice_mass"] = inner["mass"]
        if len(p):
            numbers["judge/alignment"] = alignment(p, y)
            numbers["judge/auroc"] = 1 - outer_loss("auroc", p, y)
        cost = self.client.end(inner["round"])
        return Feedback(
            self._loss(scores), artifacts=scores, metrics=numbers, cost=cost, stop=self._stop()
        )

    def metrics(self, outer: str, inner: dict[str, Any]) -> Mapping[str, float]:
        """Return what the template is worth on the held-out questions."""
        return held_out_metrics(self, outer)

    def judged_examples(self, parents: Sequence[TextTrial]) -> list[Example]:
        """Return the labelled examples with the scores of the first parent's run."""
        scores: Scores = parents[0].artifacts or [None] * len(self.labelled)
        texts = _texts(self.data, self.labelled)
        return [
            Example(f"Objective: {query}\n\nResponse:\n{response}", score, row.outcome)
            for (query, response), score, row in zip(texts, scores, self.labelled, strict=True)
        ]

    def screen(self, candidate: str, trials: Sequence[TextTrial]) -> float:
        """Return +inf for a template that has been tried, which spares its calls; else 0."""
        return float("inf") if any(candidate == t.outer for t in trials) else 0.0

    def score(self, template: str, examples: Sequence[Solution]) -> Scores:
        """Return the judge's scores of examples under a template."""
        return [j.score for j in self.judge(self.client, template, examples)]

    def examine(self, template: str) -> Scores:
        """Return scores of the held-out examples, charged only where the judge costs something."""
        if template not in self._examined:
            lm = self.client.lms["judge"]
            if lm.deterministic:
                free = Client({"judge": lm})
                judgements = self.judge(free, template, self.test)
                self._examined[template] = [j.score for j in judgements]
                free.close()
            else:
                return self.score(template, self.test)
        return self._examined[template]

    def judge(
        self, client: Client, template: str, examples: Sequence[Solution], required: bool = False
    ) -> list[Judgement]:
        """Return what the judge of a client makes of examples; see `candidates.judge`."""
        texts = [(x.query, x.response) for x in examples]
        return judge(
            client, self.scoring, template, self.data.queries, texts, self.answers, required
        )

    def _stop(self) -> str | None:
        """Return why no further template can be judged with enough left for the report."""
        if self.client.stopped is not None:
            return self.client.stopped
        try:
            self.client.require(self._next)
        except ValueError:
            return "the budget does not last for another template and the report"
        return None

    def _loss(self, scores: Scores) -> float:
        p, y = scored(scores, self.labelled)
        if len(p) < self.coverage * len(scores):
            return float("inf")
        return outer_loss(self.objective, p, y)


def _of(data: Solutions, queries: Sequence[int]) -> list[Solution]:
    """Return the examples of some queries, in the order of the queries."""
    by_query: dict[int, list[Solution]] = {}
    for row in data.rows:
        by_query.setdefault(row.query, []).append(row)
    return [row for query in queries for row in by_query[query]]


def _first_questions(data: Solutions, queries: Sequence[int], count: int) -> list[Solution]:
    """Return the examples of the first queries, of as few as hold `count`, else of all."""
    examples: list[Solution] = []
    for example in _of(data, queries):
        if len(examples) >= count and example.query != examples[-1].query:
            break
        examples.append(example)
    return examples


def _texts(data: Solutions, examples: Sequence[Solution]) -> list[tuple[str, str]]:
    return [(data.queries[x.query], x.response) for x in examples]


def _both_outcomes(examples: Sequence[Solution], what: str, name: str) -> None:
    if len({x.outcome for x in examples}) < 2:
        raise ValueError(
            f"the {len(examples)} {what} examples have one outcome only, which says nothing of a "
            f"judge; raise {name}, or give data with successes and failures."
        )


def _check_asks(template: str) -> None:
    if ASKED not in template:
        raise ValueError(
            "template must be rubric, logistic, or a text that asks for a last line "
            f"'{ASKED}'; got {template[:80]!r}."
        )


def _check_rubric(template: str) -> None:
    try:
        parse(template)
    except ValueError as reason:
        raise ValueError(
            f"the simulated writer rewrites rubrics only: {reason} Give a writer, such as "
            "+llm@problem.writer=openai_compatible."
        ) from None
