"""Agent programs: the outer level searches a program, the inner one runs it on questions.

Ke et al., MAS-ZERO, arXiv 2505.14996, and Gao et al., FlowReasoner, arXiv 2504.15257, as a search
over training questions whose result is scored on others, beside voting at the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Generator

from metaopt.engine.protocols import Feedback
from metaopt.engine.random import fold
from metaopt.engine.ranges import check_ranges
from metaopt.llm import LM, Client, Parameters, SimulatedLM
from metaopt.problems.agent_programs.baselines import control_program, fixed_blocks, vote_of_all
from metaopt.problems.agent_programs.drawing import random_program
from metaopt.problems.agent_programs.evidence import errors_by_feature
from metaopt.problems.agent_programs.execution import Execution, execute
from metaopt.problems.agent_programs.expected import expected
from metaopt.problems.agent_programs.grammar import Grammar
from metaopt.problems.agent_programs.oracle import oracle
from metaopt.problems.agent_programs.parsing import parse
from metaopt.problems.agent_programs.programs import Program
from metaopt.problems.agent_programs.report import ProgramReport
from metaopt.problems.agent_programs.rewriting import ROLE, Rewriting
from metaopt.problems.agent_programs.simulated_rewriter import SimulatedRewriter
from metaopt.problems.agent_programs.simulated_workers import SimulatedWorkers
from metaopt.problems.agent_programs.statistics import Measured, measured
from metaopt.problems.agent_programs.workers import Ints, Workers
from metaopt.problems.text import Answers, TextProblem, TextTrial

State = dict[str, Any]


class AgentPrograms(TextProblem):
    """Inner: a program runs on the training questions. Outer: the program.

        F(program) = share of wrong answers + call_price * mean calls of a question

    All answers are drawn again in each outer step, so that a program that comes up again is
    measured again. At the end the solution and the control run on held-out questions: `accuracy`,
    and `gain`, the difference on the same questions.

    No question may take more than `calls` calls. The control takes them all: `vote(solve, calls)`,
    self-consistency; of recorded workers, the one that is right most often on the training
    questions. So a program never has more calls at test than the control. What the search has spent
    in training is `lm_calls`, by which `limits` ends all searches alike, and `training_calls`.

    `propose` (the rewriter), `propose_random` and `propose_fixed` are for `metaopt.optimizers
    .Search(accept="archive", archive_size=None)`, and so is `screen`, which rejects a program that
    has been tried.

    Args:
        workers: questions, and who answers them.
        client: makes the client from the roles, as `functools.partial(Client, ...)`.
        roles: the language model of the role rewriter; `SimulatedRewriter` where it has none.
        skill: of the simulated rewriter, in [0, 1]: how often it uses the errors; 0 is blind.
        calls: most calls of a question, >= 1.
        call_price: lambda >= 0, what a call of each question costs in share of wrong answers.
        depth: most blocks nested, >= 1.
        size: most blocks of a program, >= 1.
        training: number of training questions, >= 1.
        held_out: most held-out questions, >= 1, or `None` for all others.
        first: text of the first program, or "control", or "all" for a vote of all workers, or
            "oracle" for the best one by enumeration, where the workers are simulated.
        control: text of the program to compare with, or `None` for that described above.
        programs_in_context: programs that the rewriter is shown, >= 1.
        evidence: whether it is shown the errors by features of the questions.
        attempts: most answers of the rewriter until one is a program, >= 1.
        temperature: of the rewriter.
        max_tokens: longest answer of the rewriter.
        seed: of the split into training and held-out questions.

    Raises:
        ValueError: an argument outside its range, a program that is none, an unknown role, more
            training questions than there are, or a paid model without a budget or with one that is
            too small for one outer step and the held-out questions.

    Cost: of an outer step, the program's calls on the training questions, and a call of the
    rewriter for each answer; at the end, those of the solution and of the control on the held-out
    questions.

    Example:
        >>> from metaopt.problems.agent_programs import SimulatedWorkers
        >>> workers = SimulatedWorkers({"sums": {"accuracy": 0.6}}, questions=100)
        >>> problem = AgentPrograms(workers, training=50, calls=3)
        >>> problem.init_outer(None)
        'vote(solve, 3)'
    """

    metric_names = (
        "accuracy", "calls", "control_accuracy", "control_calls", "gain", "gain_low", "gain_high",
        "training_accuracy", "training_calls", "expected_accuracy", "expected_calls",
        "expected_gain",
    )  # fmt: skip

    def __init__(
        self,
        workers: Workers,
        client: Callable[[Mapping[str, LM]], Client] = Client,
        roles: Mapping[str, LM] | None = None,
        *,
        skill: float = 0.7,
        calls: int = 5,
        call_price: float = 0.0,
        depth: int = 6,
        size: int = 40,
        training: int = 200,
        held_out: int | None = None,
        first: str = "control",
        control: str | None = None,
        programs_in_context: int = 5,
        evidence: bool = True,
        attempts: int = 3,
        temperature: float = 1.0,
        max_tokens: int = 1024,
        seed: int = 0,
    ) -> None:
        self.workers, self.call_price, self.training = workers, call_price, training
        self.held_out, self.seed = held_out, seed
        check_ranges(self, "call_price >= 0", "training >= 1", "held_out >= 1 or null", "seed")
        self.grammar = Grammar(
            workers.names, workers.thresholds, workers.criteria, workers.fresh, calls, depth, size
        )
        self.train, self.test = self._split()
        self.resplit = len(self.test) / len(self.train) if workers.resplit else 0.0
        super().__init__(client(_roles(workers, roles or {}, self.grammar, skill)))
        if not workers.lms:
            self.records = RewriterAnswers(self.client)
        workers.bind(self.client)
        self.rewriting = Rewriting(
            self.client, self.grammar, Parameters(temperature, max_tokens), programs_in_context,
            evidence, attempts,
        )  # fmt: skip
        self.control = self._program("control", control or "control")
        self.first = str(self._program("first", first))
        self.report = ProgramReport(self)
        # Of live workers. A search goes on as long as both this and the end still fit.
        end = len(self.test) * 2 * calls
        self._next = {ROLE: 1}
        if workers.lms:
            self._next[workers.names[0]] = len(self.train) * calls + end
        self.client.require(self._next)
        self._final_cost: dict[str, float] = {}

    def init_outer(self, generator: Generator | None) -> str:
        """Return the first program."""
        return self.first

    def init_inner(self, outer: str, inner: State | None, key: int) -> State:
        """Return a run that has not begun, with the history of all earlier ones."""
        number = inner["number"] + 1 if inner else 1
        self.client.begin(number)
        history = inner["history"] if inner else []
        # From zero in each step, since what a resumed run counts begins there.
        unreadable, self.rewriting.unreadable = self.rewriting.unreadable, 0
        return {
            "number": number, "run": None, "unreadable": unreadable, "history": history,
            "final": None,
        }  # fmt: skip

    def inner_step(self, outer: str, inner: State, key: int) -> State:
        """Return the state after the program has run on all training questions."""
        if inner["run"] is not None:
            return inner
        return {**inner, "run": _tensors(self.run(outer, self.train, key))}

    def evaluate(self, outer: str, inner: State, key: int) -> Feedback:
        """Return F on the training questions; the artifacts say which of them went wrong.

        A run that a spent budget or a refusal cut short says nothing: its value is that of the
        program's earlier runs, +inf where there is none.
        """
        right, calls = inner["run"]["right"].numpy(), inner["run"]["calls"].numpy()
        accuracy, mean_calls = float(right.mean()), float(calls.mean())
        rows = errors_by_feature(self.workers, self.train, right)
        stopped = self.client.stopped
        cut = stopped is not None and bool(self.workers.lms)
        value = 1 - accuracy + self.call_price * mean_calls
        if cut:
            known = [e["value"] for e in inner["history"] if e["program"] == outer]
            value = fmean(known) if known else float("inf")
        cost = dict(self.client.end(inner["number"]))
        if not self.workers.lms:
            cost["lm_calls"] = cost.get("lm_calls", 0.0) + float(calls.sum())
        return Feedback(
            value,
            artifacts={"accuracy": accuracy, "calls": mean_calls, "evidence": rows},
            metrics={
                "program/accuracy": accuracy,
                "program/calls": mean_calls,
                "program/unreadable": float(inner["unreadable"]),
            },
            cost=cost,
            stop=stopped or self._stop(),
        )

    def observe(self, outer: str, inner: State, feedback: Feedback) -> State:
        """Return the state with this run in its history."""
        entry = {
            "program": outer,
            "accuracy": feedback.artifacts["accuracy"],
            "calls": feedback.artifacts["calls"],
            "value": float(feedback.value),
            "unreadable": inner["unreadable"],
        }
        return {**inner, "history": [*inner["history"], entry]}

    def finish(self, outer: str, inner: State, key: int) -> State:
        """Return the state after the solution and the control have run on held-out questions.

        Both with the same key: calls at the same place in both programs are the same draw, so that
        the control is not better or worse than itself.
        """
        final, control = (self.run(p, self.test, key) for p in (outer, str(self.control)))
        if not self.workers.lms:
            self._final_cost = {"lm_calls": float(final.calls.sum() + control.calls.sum())}
        return {**inner, "final": {"solution": _tensors(final), "control": _tensors(control)}}

    def overhead(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """Return the calls on held-out questions."""
        return self._final_cost

    def metrics(self, outer: str, inner: State) -> dict[str, float]:
        """Return figures of the solution, and at the end those on held-out questions.

        `training_accuracy` is what selected it, which is optimistic. `gain_low` and `gain_high` are
        the ends of the 95 % interval of `gain` over questions. Of simulated workers the expectation
        over all questions is known: `expected_accuracy`, and `expected_gain` over the control.
        """
        numbers = {"training_calls": self.training_calls(inner)}
        tried = [e["accuracy"] for e in inner["history"] if e["program"] == outer]
        if tried:
            numbers["training_accuracy"] = sum(tried) / len(tried)
        if isinstance(self.workers, SimulatedWorkers):
            exact = expected(parse(outer, self.grammar), self.workers)
            control = expected(self.control, self.workers)
            numbers["expected_accuracy"], numbers["expected_calls"] = exact
            numbers["expected_gain"] = exact.accuracy - control.accuracy
        result = self.measured(inner)
        return numbers if result is None else {**numbers, **result.named()}

    def measured(self, inner: Mapping[str, Any]) -> Measured | None:
        """Return what the held-out questions say, or `None` before the end."""
        if inner["final"] is None:
            return None
        sides = [inner["final"][side] for side in ("solution", "control")]
        return measured(*(side[part].numpy() for side in sides for part in ("right", "calls")))

    def training_calls(self, inner: Mapping[str, Any]) -> float:
        """Return the workers' calls on training questions so far."""
        return float(sum(e["calls"] * len(self.train) for e in inner["history"]))

    def run(self, program: str, questions: Ints, key: int) -> Execution:
        """Return what a program does on some questions."""
        return execute(parse(program, self.grammar), self.workers, questions, key)

    def propose(self, parents: Sequence[TextTrial], key: int) -> str:
        """Return the rewriter's next program; the best one again where it writes none."""
        return self.rewriting(parents, key)

    def propose_random(self, parents: Sequence[TextTrial], key: int) -> str:
        """Return a program drawn from the grammar, whatever has been tried."""
        return str(random_program(self.grammar, np.random.default_rng(key)))

    def propose_fixed(self, parents: Sequence[Any], key: int) -> str:
        """Return the single block that has been run least often, the first of several."""
        runs = {trial.outer: trial.evaluations for trial in parents}
        return min(fixed_blocks(self.grammar), key=lambda text: runs.get(text, 0))

    def screen(self, candidate: str, trials: Sequence[TextTrial]) -> float:
        """Return +inf for a program that has been tried, which spares its calls; else 0."""
        return float("inf") if any(candidate == t.outer for t in trials) else 0.0

    def exact_curve(self) -> dict[str, list[tuple[float, float]]]:
        """Return what votes are worth, of up to three times the calls; nothing unless simulated."""
        if not isinstance(self.workers, SimulatedWorkers):
            return {}
        calls = self.grammar.calls
        solve = Program("solve", name="" if len(self.workers.names) == 1 else self.workers.names[0])
        numbers = [*range(2, calls + 1), *(factor * calls for factor in (2, 3))]
        votes = [solve, *(Program("vote", (solve,), n) for n in numbers if n > 1)]
        curve = [(e.calls, e.accuracy) for e in (expected(v, self.workers) for v in votes)]
        return {f"vote({solve}, n), exact": curve}

    def _split(self) -> tuple[Ints, Ints]:
        """Return the indices of the training and of the held-out questions."""
        size = self.workers.size
        if self.training >= size:
            raise ValueError(
                f"training={self.training} leaves none of {size} questions held out; take at most "
                f"{size - 1}."
            )
        order = np.random.default_rng(fold(self.seed, "questions")).permutation(size)
        stop = None if self.held_out is None else self.training + self.held_out
        return order[: self.training], order[self.training : stop]

    def _program(self, argument: str, text: str) -> Program:
        """Return the program that an argument names."""
        if text == "control":
            program = control_program(self.workers, self.grammar, self.train)
        elif text == "all":
            if self.workers.lms and len(self.workers.names) > 1:
                raise ValueError(
                    f"{argument}=all would ask all models before the run; write the vote, as "
                    f"vote({', '.join(f'solve({name})' for name in self.workers.names)})."
                )
            program = vote_of_all(self.workers, self.grammar, self.train)
        elif text == "oracle":
            if not isinstance(self.workers, SimulatedWorkers):
                raise ValueError(
                    f"{argument}=oracle needs simulated workers, of which all is known."
                )
            program = oracle(self.workers, self.grammar, self.call_price)
        else:
            return self._read(argument, text)
        return self._read(argument, str(program))

    def _read(self, argument: str, text: str) -> Program:
        try:
            return parse(text, self.grammar)
        except ValueError as error:
            raise ValueError(f"{argument}={text!r}: {error}") from error

    def _stop(self) -> str | None:
        """Return why no further program can run with enough calls left for the end."""
        try:
            self.client.require(self._next)
        except ValueError:
            return "the budget does not last for another program and the held-out questions"
        return None


class RewriterAnswers(Answers):
    """The rewriter's answers, where the workers' calls are none of the client's."""

    def spent(self) -> Mapping[str, float]:
        """Return nothing: the client knows of the rewriter alone, the ledger of all calls."""
        return {}


def _tensors(run: Execution) -> dict[str, torch.Tensor]:
    return {"right": torch.from_numpy(run.right), "calls": torch.from_numpy(run.calls)}


def _roles(
    workers: Workers, roles: Mapping[str, LM], grammar: Grammar, skill: float
) -> dict[str, LM]:
    """Return the models of all roles."""
    unknown = set(roles) - {ROLE}
    if unknown:
        raise ValueError(f"roles names {', '.join(sorted(unknown))}; the only role is {ROLE}.")
    simulated = SimulatedLM(SimulatedRewriter(grammar, skill), "program-rewriter")
    return {ROLE: roles.get(ROLE, simulated), **workers.lms}
