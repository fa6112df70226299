"""Every estimator x inner optimizer x complication: right, or refused with a sentence.

    python tests/estimators/estimator_table.py    # measures all cells and writes the page

A cell is `exact` within 1e-6 of differences of the whole run, `formula` within 1e-6 of the
estimator's own formula with dense matrices, `unbiased` within the standard error of a mean, or
`refused`; anything else is `wrong`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import dense
import torch
from combined import COMPLICATIONS, OPTIMIZERS, problem

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator
from metaopt.engine.schedules import PowerDecay
from metaopt.estimators import (
    ConjugateGradient,
    Direct,
    EvolutionStrategies,
    Exact,
    FiniteDifference,
    FirstOrder,
    Forward,
    GradientDescent,
    Identity,
    Implicit,
    Neumann,
    Nystrom,
    OneStep,
    Penalty,
    Saba,
    Sama,
    ScoreFunction,
    Soba,
    Unroll,
)

PAGE = Path(__file__).parents[2] / "docs/estimator_table.md"
KEY, STEPS, PAIRS, GAMMA, TOLERANCE = 7, 3, 80, 3.0, 1e-6
CONVERGED = {"iterations": 80, "damping": 0.0, "tolerance": 1e-13}


@dataclass(frozen=True, eq=False)
class Cell:
    """Where estimators are called; two rows may have a reference in common."""

    loop: InnerLoop
    outer: dict
    inner: object

    def arguments(self):
        return self.loop, self.outer, tree.clone(self.inner), KEY

    @cached_property
    def through_run(self):
        return dense.through_run(*self.arguments(), STEPS)

    @cached_property
    def through_last_step(self):
        return dense.through_last_step(*self.arguments(), STEPS)

    @cached_property
    def end(self):
        return dense.at_end(*self.arguments(), STEPS)


class Row(NamedTuple):
    """An estimator and what it is compared with.

    Args:
        estimate: cell -> what the estimator returns for it, a flat vector.
        reference: cell -> the vector that it should be.
        kind: exact, formula or unbiased.
        settings: of the problem: fork, sampled, blocks.
    """

    estimate: Callable
    reference: Callable
    kind: str
    settings: Mapping = MappingProxyType({})


class Verdict(NamedTuple):
    """What a cell is, and the sentence of a refusal or the error."""

    kind: str
    detail: str


def once(estimator, keys=(KEY,)):
    """Return an estimate by calls of an estimator; the last one counts."""

    def estimate(cell):
        estimator.check(cell.loop)
        inner = tree.clone(cell.inner)
        fresh = type(estimator).__new__(type(estimator))
        fresh.__dict__ = dict(vars(estimator))
        for key in keys:
            inner, feedback = fresh(cell.loop, cell.outer, inner, key)
        return dense.flat(feedback.grad)

    return estimate


def averaged(estimator):
    """Return the expectation of an estimate over the labels of its step."""

    def estimate(cell):
        estimator.check(cell.loop)
        total = 0.0
        for probability, _ in dense.labelled(cell.loop, cell.outer, cell.inner, KEY):
            total = total + probability * dense.flat(estimator(*cell.arguments())[1].grad)
        return total

    return estimate


def solved(q):
    return lambda cell: dense.implicit(cell.end, q(cell.end))


def first_order(cell):
    v = dense.unflat(cell.end.v, cell.inner.params)
    return cell.end.direct + dense.flat(
        {k: v.get(k, torch.zeros_like(t)) for k, t in cell.outer.items()}
    )


SOLVERS = {
    "implicit_exact": (Exact(), dense.inverse),
    "implicit (converged)": (ConjugateGradient(**CONVERGED), dense.inverse),
    "implicit_nystrom (converged)": (
        ConjugateGradient(**CONVERGED, preconditioner=Nystrom(rank=5)),
        dense.inverse,
    ),
    "implicit_neumann": (Neumann(5, step=0.2), lambda at: dense.neumann(at, 5, 0.2)),
    "implicit_identity": (Identity(), lambda at: at.v),
    "implicit, gradient descent": (
        GradientDescent(5, step=0.2),
        lambda at: dense.neumann(at, 5, 0.2),
    ),
}
KEYS = (7, 8, 9)
ROWS = {
    "unroll": Row(once(Unroll(STEPS)), attrgetter("through_run"), "exact"),
    "unroll, segments=2": Row(once(Unroll(STEPS, segments=2)), attrgetter("through_run"), "exact"),
    "unroll, truncation=1": Row(
        once(Unroll(STEPS, truncation=1)), attrgetter("through_last_step"), "formula"
    ),
    "forward": Row(once(Forward(STEPS)), attrgetter("through_run"), "exact"),
    "one_step": Row(once(OneStep(STEPS)), attrgetter("through_last_step"), "formula"),
    **{
        name: Row(once(Implicit(solver, inner_steps=STEPS)), solved(q), "formula")
        for name, (solver, q) in SOLVERS.items()
    },
    "soba": Row(
        once(Soba(step=0.2), KEYS), lambda c: dense.soba(*c.arguments()[:3], KEYS, 0.2), "formula"
    ),
    "saba": Row(
        once(Saba(step=0.2), KEYS),
        lambda c: dense.saba(*c.arguments()[:3], KEYS, 0.2),
        "formula",
        {"blocks": True},
    ),
    "finite_difference": Row(
        once(FiniteDifference(inner_steps=STEPS)), solved(lambda at: at.v), "formula"
    ),
    "sama": Row(once(Sama(inner_steps=STEPS)), solved(dense.adapted), "formula"),
    "penalty": Row(
        once(Penalty(GAMMA, GAMMA, inner_steps=STEPS)),
        lambda c: dense.penalty(*c.arguments(), STEPS, GAMMA),
        "formula",
    ),
    "penalty, a copy with a schedule": Row(
        once(Penalty(GAMMA, GAMMA, inner_steps=STEPS, copy_schedule=PowerDecay(0.0))),
        lambda c: dense.penalty(*c.arguments(), STEPS, GAMMA, divisor=1.0),
        "formula",
    ),
    "first_order": Row(once(FirstOrder(STEPS)), first_order, "formula", {"fork": True}),
    "direct": Row(once(Direct(STEPS)), attrgetter("end.direct"), "formula"),
    "score_function, loss_difference": Row(
        averaged(ScoreFunction("loss_difference")),
        lambda c: dense.expected_after_step(*c.arguments()),
        "unbiased",
        {"sampled": True},
    ),
    "evolution_strategies": Row(
        once(EvolutionStrategies(PAIRS, sigma=1e-4, inner_steps=STEPS)),
        attrgetter("through_run"),
        "unbiased",
    ),
}


@cache
def cell(optimizer, complication, fork=False, sampled=False, blocks=False):
    """Return the place of a cell: two steps after the start, so that moments are not zero."""
    loop = InnerLoop(problem(optimizer, complication, fork, sampled, blocks))
    outer = loop.problem.init_outer(generator(0))
    inner = loop.start(outer, None, KEY)
    return Cell(loop, outer, inner if fork else loop.run(outer, inner, 3, 2))


def judge(name, optimizer, complication):
    """Return the verdict of a cell."""
    row = ROWS[name]
    place = cell(optimizer, complication, **row.settings)
    try:
        estimate = row.estimate(place)
    except (ValueError, TypeError) as refusal:
        return Verdict("refused", anonymous(str(refusal)))
    reference = row.reference(place)
    error = float((estimate - reference).norm() / reference.norm())
    if reference.norm() == 0:
        error = float(estimate.norm())
    if name == "evolution_strategies":
        return Verdict(row.kind if _unbiased(estimate, reference) else "wrong", f"{error:.1e}")
    return Verdict(row.kind if error < TOLERANCE else "wrong", f"{error:.1e}")


def _unbiased(estimate, exact):
    """Return whether a mean of eps <eps, exact> over pairs is within 4.5 standard errors.

    For normal eps the share along the gradient is 1 +- sqrt(2 / pairs), and what is across it has
    the length sqrt((m - 1) / pairs) for m numbers.
    """
    along = float(estimate @ exact / exact.square().sum())
    across = float((estimate - along * exact).norm() / exact.norm())
    spread = math.sqrt((len(exact) - 1) / PAIRS)
    return abs(along - 1) < 4.5 * math.sqrt(2 / PAIRS) and across < 3 * spread


def anonymous(sentence):
    """Return a sentence without the names of classes, which differ between rows that say it."""
    sentence = re.sub(r"^[A-Z]\w+(?= (cannot|does not|holds|needs))", "This estimator", sentence)
    return re.sub(
        r"\b(Combined|Averaged|Sampled|SampledAverage|Blocks|AveragedBlocks)\b",
        "the problem",
        sentence,
    )


def written(verdicts):
    """Return the page of all verdicts by (estimator, optimizer, complication)."""
    order = (verdicts[place] for place in product(ROWS, OPTIMIZERS, COMPLICATIONS))
    sentences = list(dict.fromkeys(v.detail for v in order if v.kind == "refused"))
    lines = [f"| estimator | {' | '.join(COMPLICATIONS)} |", f"|---|{'---|' * len(COMPLICATIONS)}"]
    for name in ROWS:
        cells = [
            entry({o: verdicts[name, o, c] for o in OPTIMIZERS}, sentences) for c in COMPLICATIONS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    columns = "\n".join(f"- **{name}**: {text}." for name, text in COMPLICATIONS.items())
    notes = "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1))
    text = HEAD.format(optimizers=", ".join(OPTIMIZERS), columns=columns)
    return f"{text}\n" + "\n".join(lines) + f"\n\n## Refusals\n\n{notes}\n"


def entry(verdicts, sentences):
    """Return the text of a cell: what holds for most optimizers, then `names: verdict`."""
    groups = {}
    for optimizer, verdict in verdicts.items():
        text = verdict.kind
        if verdict.kind == "refused":
            text += f" ({sentences.index(verdict.detail) + 1})"
        groups.setdefault(text, []).append(optimizer)
    first, *rest = sorted(groups, key=lambda text: -len(groups[text]))
    return "; ".join([first, *(f"{', '.join(groups[t])}: {t}" for t in rest)])


def read(page):
    """Return the verdicts that a page shows, by (estimator, optimizer, complication)."""
    notes = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    verdicts = {}
    for line in page.splitlines():
        name, *cells = (part.strip() for part in line.strip("|").split("|"))
        if name not in ROWS:
            continue
        for complication, text in zip(COMPLICATIONS, cells, strict=True):
            for group in text.split("; "):
                names, _, shown = group.rpartition(": ")
                kind, _, note = shown.strip(")").partition(" (")
                verdict = Verdict(kind, notes[note] if note else "")
                for optimizer in names.split(", ") if names else OPTIMIZERS:
                    verdicts[name, optimizer, complication] = verdict
    return verdicts


HEAD = """# What is exact, and what is refused

Every estimator on a tiny classifier whose rows phi weighs, with one complication at a time, trained
by each of six inner optimizers: {optimizers}.
A cell says what its test measures in float64:

- **exact**: within 1e-6 of central differences of the whole run, which share no code with the
  estimators;
- **formula**: within 1e-6 of the estimator's own formula, evaluated with dense matrices. Implicit
  solves are at the theta of three steps here; at the solution they are held against differences as
  well;
- **unbiased**: within the standard error of what it estimates;
- **refused**: with the sentence of that number below;
- **wrong**: none of these.

A cell holds for all six optimizers but those that it names. What the columns add:

{columns}

`python tests/estimators/estimator_table.py` writes this page, and a test fails where it is not what
the code gives.
"""


if __name__ == "__main__":
    PAGE.write_text(
        written(
            {(n, o, c): judge(n, o, c) for c in COMPLICATIONS for o in OPTIMIZERS for n in ROWS}
        )
    )
