"""Template evolution: prompts and the judge's scoring template evolve together, as text.

The inner level looks, for every query, for the prompt whose response the judge scores highest; the
outer level looks for the template under which those scores agree with the true outcomes. What comes
out is a calibrated judge. Koo et al., Align to Misalign, ICLR 2026 (AMIS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from metaopt.engine.protocols import Feedback
from metaopt.engine.random import fold
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.llm import LM, Client, Parameters, Request, SimulatedLM
from metaopt.llm.authorisation import gate
from metaopt.llm.rubric import parse_weights
from metaopt.metrics.traits import PlantedFeatures, planted_counts
from metaopt.problems.template_evolution.candidates import (
    RANKINGS,
    Candidate,
    Panel,
    Ranking,
    arrays,
    best,
    judge,
    judged,
    recorded,
)
from metaopt.problems.template_evolution.objectives import OBJECTIVES, alignment, outer_loss
from metaopt.problems.template_evolution.prompts import Example, prompting, read_prompts
from metaopt.problems.template_evolution.report import EvolutionReport, write_transcripts
from metaopt.problems.template_evolution.scoring import Scoring, mean_mass
from metaopt.problems.template_evolution.tasks import KnownTruth, Task
from metaopt.problems.template_evolution.template_problem import TemplateProblem
from metaopt.problems.text import TextTrial, ask, whole_lines

WEIGHED = 0.25
"""A criterion counts as part of a template from this share of its largest weight on."""

ROLES = ("target", "judge", "optimizer", "template", "checker")

INSTRUCTION = "You write prompts that make a target meet an objective."


class TemplateEvolution(TemplateProblem):
    """Inner: prompts by the judge's score. Outer: the template by its agreement with outcomes.

        inner, per query:  max over prompts p of Judge(q, Target(p); template)
        outer:             F(template) = objective(scores, outcomes) over all candidates of the run

    An inner run starts from the best of the last one and fresh prompts, `candidates` in all; an
    inner step asks the optimizer for `prompts_per_step` new ones, with the `parents_in_context`
    best in its context. `propose` and `screen` are for `metaopt.optimizers.Search`: the first asks
    the template model for a template, the second predicts a template's loss by judging recorded
    candidates again (the replay buffer: whatever earlier trials have tried).

    Candidates are kept by reference, their texts in the client's own file. A request that fails
    makes no score and no outcome. A spent budget or a policy's refusal ends the run after the step
    it happens in, with everything that was paid for; a role most of whose answers fail, and a judge
    whose replies to the first template are not understood, stop it with an error, and it can be
    resumed.

    Where the truth is unknown, every second query is kept from the template: its candidates are
    searched for and judged, but they are in no loss, no screening pool and no example, so that the
    calibrated judge can be measured on them. Where only one outcome has been seen, a balanced loss
    is that outcome's: it rewards strictness until there is a success.

    Args:
        task: queries, first prompts, first template and checker.
        client: makes the client from the roles, as `functools.partial(Client, ...)`.
        roles: language models that take the place of the task's own, by role: target, judge,
            optimizer, template, checker.
        checker: "task" (its own rule) or "lm" (the role checker).
        objective: one of `OBJECTIVES`; "mae" is the paper's.
        ranking: order of candidates. "label_first": successes before failures, then by score;
            "dense": by score (the paper); "outcome": by the checker alone, as if it were the judge;
            "random": by nothing.
        candidates: number C of candidates an inner run starts with, >= 2.
        inherited: how many of them are the best of the last run, 0 <= inherited <= candidates.
        prompts_per_step: number M of prompts asked for in an inner step, >= 1.
        parents_in_context: number K of prompts shown to the optimizer, >= 1.
        templates_in_context: number K' of templates shown to the template model, >= 1.
        examples: misjudged responses of each outcome shown to it, >= 0; 0 is a blind rewriter.
        screening_pool: recorded candidates of each outcome that `screen` judges again, >= 1.
        scoring: what the judge is asked; see `metaopt.problems.template_evolution.scoring`.
        verify: see `metaopt.problems.template_evolution.candidates.Panel`; further answers are
            drawn at `temperature`.
        instruction: what the optimizer is told first; required where it is not simulated.
        temperature: of optimizer and template model; target, judge and checker answer at 0.
        max_tokens: longest answer.
        inner_steps: number L of inner steps that the estimator will take, for the cost estimate.
        transcripts: write the candidates of each outer step with their texts into the run's folder.

    Raises:
        ValueError: an argument outside its range, a role without a language model or an unknown
            one, a real target without authorisation, a paid role without a budget, or a budget that
            does not last for one outer step.

    Cost: C - inherited + L M calls of the target (`verify` times that for successes), C + L M of
    the judge and L of the optimizer per query and outer step; one of the template model a proposal;
    and 2 `screening_pool` of the judge for each proposal screened and, where the archive is ranked
    by the screen, for each template in it. What was asked before is free: most of the latter.
    """

    def __init__(
        self,
        task: Task,
        client: Callable[[Mapping[str, LM]], Client] = Client,
        roles: Mapping[str, LM] | None = None,
        checker: Literal["task", "lm"] = "task",
        objective: str = "balanced_brier",
        ranking: Ranking = "label_first",
        candidates: int = 10,
        inherited: int = 5,
        prompts_per_step: int = 5,
        parents_in_context: int = 5,
        templates_in_context: int = 5,
        examples: int = 4,
        screening_pool: int = 64,
        verify: int = 1,
        instruction: str | None = None,
        temperature: float = 1.0,
        max_tokens: int = 512,
        inner_steps: int = 5,
        transcripts: bool = False,
        scoring: Scoring | None = None,
    ) -> None:
        self.objective, self.ranking, self.checker = objective, ranking, checker
        self.candidates, self.inherited, self.verify = candidates, inherited, verify
        self.prompts_per_step, self.parents_in_context = prompts_per_step, parents_in_context
        self.screening_pool, self.transcripts = screening_pool, transcripts
        self.inner_steps = inner_steps
        check_choices(self, objective=OBJECTIVES, ranking=RANKINGS, checker=("task", "lm"))
        check_ranges(
            self, "candidates >= 2", "0 <= inherited <= candidates", "prompts_per_step >= 1",
            "parents_in_context >= 1", "screening_pool >= 1", "verify >= 1", "inner_steps >= 0",
        )  # fmt: skip
        lms = {**task.roles(), **(roles or {})}
        unknown = sorted(set(lms) - set(ROLES))
        if unknown:
            raise ValueError(f"roles names {unknown[0]!r}; roles are {', '.join(ROLES)}.")
        needed = [role for role in ROLES if role != "checker" or checker == "lm"]
        missing = [role for role in needed if role not in lms]
        if missing:
            raise ValueError(
                f"no language model plays the role {missing[0]}; give one, such as "
                f"+llm@problem.roles.{missing[0]}=openai_compatible."
            )
        authorisation = gate(lms)
        if instruction is None and not isinstance(lms["optimizer"], SimulatedLM):
            raise ValueError(
                "a real optimizer needs problem.instruction: what it is told to write, in your "
                "own words."
            )
        simulated = isinstance(task, KnownTruth) and not {"target", "judge"} & set(roles or ())
        super().__init__(
            client(lms), Parameters(temperature, max_tokens), templates_in_context, examples,
            quoting=False, examiner=Client(task.roles()) if simulated else None,
            authorisation=authorisation, scoring=scoring,
        )  # fmt: skip
        self.scoring.check(task.template, lms["judge"])
        planted = self.examiner and isinstance(task, PlantedFeatures)
        self.metric_names = [
            "success",
            *(("auroc", "alignment") if self.examiner else ()),
            *(("template_coverage", "template_redundancy") if planted else ()),
        ]
        self.task = task
        self.report = EvolutionReport(self)
        self.panel = Panel(
            self.client, task.queries, task.check if checker == "task" else None,
            Parameters(0.0, max_tokens), verify, self.creative,
            ranking == "outcome", self.scoring,
        )  # fmt: skip
        self.instruction = instruction or INSTRUCTION
        each = len(task.queries)
        first = candidates + inner_steps * prompts_per_step
        self.client.require(
            {
                "target": each * first,
                "judge": 0 if ranking == "outcome" else each * first,
                "optimizer": each * inner_steps,
                **({"checker": each * first} if checker == "lm" else {}),
            },
            each * first * len(task.template) // 5,
        )

    def init_outer(self, generator: Any) -> str:
        """Return the task's first template."""
        return self.task.template

    def init_inner(self, outer: str, inner: Mapping[str, Any] | None, key: int) -> dict[str, Any]:
        """Return a judged population: the best of the last run, and fresh prompts.

        `tried` is what earlier runs came to, see `trial`.
        """
        number = inner["round"] + 1 if inner else 1
        self.client.begin(number)
        inherited_candidates: list[Candidate] = []
        fresh: list[tuple[int, str]] = []
        for query in range(len(self.task.queries)):
            inherited = self._best(inner["log"], query, self.inherited) if inner else []
            inherited_candidates += inherited
            count, draw = self.candidates - len(inherited), fold(key, "first", query)
            fresh += [(query, prompt) for prompt in self.task.prompts(query, count, draw)]
        candidates = inherited_candidates + self.panel.answer(fresh)
        log = self.panel.judge(outer, candidates, required=number == 1)
        tried = [*inner["tried"], self.trial(inner)] if inner else []
        return {"round": number, "template": outer, "log": log, "tried": tried}

    def inner_step(self, outer: str, inner: dict[str, Any], key: int) -> dict[str, Any]:
        """Return the state after more prompts of each query; unchanged once the client stopped."""
        if self.client.stopped:
            return inner
        known = {(c["query"], c["prompt"]) for c in inner["log"]}
        fresh = [
            (query, prompt)
            for query, prompt in self._new_prompts(inner["log"], key)
            if (query, self.client.keep(prompt)) not in known
        ]
        return {
            **inner,
            "log": self.panel.judge_more(outer, inner["log"], self.panel.answer(fresh)),
        }

    def evaluate(self, outer: str, inner: dict[str, Any], key: int) -> Feedback:
        """Return the template's loss on all candidates of the run, which are the artifacts."""
        log, trial = inner["log"], self.trial(inner)
        if self.transcripts and self.records.folder is not None:
            write_transcripts(self.client, log, self.records.folder, inner["round"])
        numbers = {"judge/coverage": trial["coverage"]}
        if rows := judged(self.open_to_search(log)):
            p, y = arrays(rows)
            numbers |= {"judge/alignment": alignment(p, y), "judge/base_rate": float(y.mean())}
            if 0 < y.mean() < 1:
                numbers["judge/auroc"] = 1 - outer_loss("auroc", p, y)
        if (mass := mean_mass(c.get("mass") for c in log)) is not None:
            numbers["judge/choice_mass"] = mass
        hits = [pick is not None and pick["outcome"] is True for pick in self.picks(inner)]
        numbers["inner/success"] = float(np.mean(hits))
        cost = self.client.end(inner["round"])
        return Feedback(trial["loss"], None, None, log, False, numbers, cost, self.client.stopped)

    def trial(self, inner: Mapping[str, Any]) -> dict[str, Any]:
        """Return the template of an inner run, its loss, and the share of candidates with a score.

        The loss is +inf where no candidate has both a score and an outcome.
        """
        log = inner["log"]
        rows = judged(self.open_to_search(log))
        return {
            "template": inner["template"],
            "loss": outer_loss(self.objective, *arrays(rows)) if rows else float("inf"),
            "coverage": len(judged(log)) / max(len(log), 1),
        }

    def metrics(self, outer: str, inner: dict[str, Any]) -> Mapping[str, float]:
        """Return, of a simulated task, the true success of the picks in % and the judge's worth.

        The judge is examined on responses that the search has not seen, at no charge. Where a real
        model plays target or judge, success is what the checker saw of the picks.
        """
        picks = self.picks(inner)
        if self.examiner is None or not isinstance(self.task, KnownTruth):
            return {"success": 100 * float(np.mean([bool(p and p["outcome"]) for p in picks]))}
        rates = [
            self.task.success(pick["query"], self.client.text(pick["prompt"])) if pick else 0.0
            for pick in picks
        ]
        metrics = {"success": 100 * float(np.mean(rates))}
        rows = judged(self.examine(outer))
        if rows:
            p, y = arrays(rows)
            metrics |= {"auroc": 1 - outer_loss("auroc", p, y), "alignment": alignment(p, y)}
        if isinstance(self.task, PlantedFeatures):
            weights = parse_weights(outer)
            counts = planted_counts(self.task.planted, weights, WEIGHED)
            metrics |= {
                "template_coverage": counts.coverage,
                "template_redundancy": counts.redundancy,
            }
        return metrics

    def examine(self, template: str) -> list[Candidate]:
        """Return the held-out responses of a simulated task, judged; none of a real one."""
        if self.examiner is None or not isinstance(self.task, KnownTruth):
            return []
        queries, parameters = self.task.queries, self.panel.parameters
        rows = [(q, r, y) for q in range(len(queries)) for r, y in self.task.examination(q)]
        responses = [(q, r) for q, r, _ in rows]
        judgements = judge(self.examiner, self.scoring, template, queries, responses, parameters)
        return [
            {"query": query, "outcome": outcome, "score": j.score}
            for (query, _, outcome), j in zip(rows, judgements, strict=True)
        ]

    def picks(self, inner: Mapping[str, Any]) -> list[Candidate | None]:
        """Return, for every query, the best candidate of the run."""
        ranked = (self._best(inner["log"], q, 1) for q in range(len(self.task.queries)))
        return [first[0] if first else None for first in ranked]

    def judged_examples(self, parents: Sequence[TextTrial]) -> list[Example]:
        """Return recorded candidates as the first parent's template judges them."""
        rows = judged(self.panel.judge(parents[0].outer, self._screening_pool(parents)))
        return [Example(self.client.text(c["response"]), c["score"], c["outcome"]) for c in rows]

    def screen(self, candidate: str, trials: Sequence[TextTrial]) -> float:
        """Return a template's loss on what earlier trials have recorded, judged again.

        It is +inf where the judge gives less than half of them a score. Once the client has stopped
        it is the loss of the template's own run, since rows are missing.
        """
        candidates = self._screening_pool(trials)
        rows = judged(self.panel.judge(candidate, candidates))
        if self.client.stopped:
            return next((t.value for t in trials if t.outer == candidate), float("inf"))
        enough = rows and 2 * len(rows) >= len(candidates)
        return outer_loss(self.objective, *arrays(rows)) if enough else float("inf")

    def _new_prompts(self, log: Sequence[Candidate], key: int) -> list[tuple[int, str]]:
        """Return (query, prompt) pairs by the optimizer, shown the best of each query."""
        queries = range(len(self.task.queries))
        requests = []
        for query in queries:
            shown = self._best(log, query, self.parents_in_context)
            pairs = [(self.client.text(c["prompt"]), c["score"]) for c in shown]
            messages = prompting(
                self.task.queries[query], pairs, self.prompts_per_step, self.instruction
            )
            rollout = fold(key, "optimizer", query) % 2**31
            requests.append(Request("optimizer", messages, self.creative, rollout))
        return [
            (query, prompt)
            for query, reply in zip(queries, ask(self.client, requests), strict=True)
            for prompt in read_prompts(whole_lines(reply), self.prompts_per_step)
        ]

    def _best(self, log: Sequence[Candidate], query: int, count: int) -> list[Candidate]:
        return best(log, query, count, self.ranking)

    def _screening_pool(self, trials: Sequence[TextTrial]) -> list[Candidate]:
        logs = (self.open_to_search(t.artifacts or ()) for t in trials)
        return recorded(logs, self.screening_pool)

    def open_to_search(self, log: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that the template may be fitted to."""
        if self.examiner is not None or len(self.task.queries) < 2:
            return list(log)
        return [c for c in log if c["query"] % 2 == 0]
