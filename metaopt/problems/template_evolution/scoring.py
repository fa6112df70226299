"""How a judge scores a response: a number that it writes, or what it holds likely.

A model that is too small to grade in words may still know: its probabilities of `Yes` and `No`, of
the digits, or of the response itself order responses better than what it writes. All scores lie in
[`rubric.LOW`, `rubric.HIGH`], so that objectives, thresholds and reports read them alike.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

from metaopt.llm import LM, Parameters, Reply, Request, SimulatedLM, user
from metaopt.llm.openai_compatible import OpenAICompatibleLM
from metaopt.llm.rubric import FOOTER, HIGH, LOW, STEP, parse_score
from metaopt.llm.score_replies import UNDERSTOOD, form
from metaopt.problems.template_evolution.prompts import judging

LEAST_MASS = 0.5
"""Mean probability of all choices together below which a judge is warned about."""

ASKED = "Score: <number>"
"""What a template that asks for a written score holds."""


class Judgement(NamedTuple):
    """What a judge makes of a response.

    Args:
        score: from `LOW` to `HIGH`, or `None` without one.
        mass: probability of all choices together, or `None` where there are none.
    """

    score: float | None
    mass: float | None = None


class Scoring(ABC):
    """What the judge is asked about a response, and how its reply is read.

    Attributes:
        name: of the kind, in `judge.json`.
        centred: scores are relative to the other responses of their objective; see `centre`.
        reads_template: whether the scoring template makes a difference.
    """

    name: ClassVar[str]
    centred: bool = False
    reads_template: ClassVar[bool] = True

    @abstractmethod
    def request(
        self, template: str, query: str, response: str, parameters: Parameters
    ) -> Request | None:
        """Return the question to the judge; `None` where a response cannot be judged.

        Args:
            parameters: how the judge writes, where it does.
        """

    @abstractmethod
    def read(self, reply: Reply) -> Judgement:
        """Return the score of a reply."""

    @abstractmethod
    def complaint(
        self, replies: Sequence[Reply], missed: Sequence[Reply], parameters: Parameters
    ) -> str:
        """Return what is wrong with the replies that have no score; never their words."""

    def check(self, template: str, judge: LM) -> None:  # noqa: B027 (a scoring that takes any)
        """Refuse a template that asks for something else, and a judge that cannot answer.

        Raises:
            ValueError: says what a template has to ask for, or which judge to take.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return what `scoring_of` reads, as JSON values."""
        return {"name": self.name}


@dataclass(frozen=True)
class WrittenScore(Scoring):
    """The judge writes a score; the template asks for a last line `Score: <number>`.

    A reply that was cut at its longest length has none: `Score: 1` may be the start of 10.
    """

    name = "written"

    def request(
        self, template: str, query: str, response: str, parameters: Parameters
    ) -> Request | None:
        """Return the template, the objective and the response as one question."""
        return Request("judge", judging(template, query, response), parameters)

    def read(self, reply: Reply) -> Judgement:
        """Return the score that the reply ends with."""
        return Judgement(None if reply.finish == "length" else parse_score(reply.text))

    def complaint(
        self, replies: Sequence[Reply], missed: Sequence[Reply], parameters: Parameters
    ) -> str:
        """Return how many are not understood, and the form of one."""
        cut = sum(reply.finish == "length" for reply in missed)
        shown = next((reply for reply in missed if reply.finish != "length"), missed[0])
        lines = "".join(f"\n    {line}" for line in form(shown.text).splitlines())
        return (
            f"judge: {len(missed)} of {len(replies)} replies are not understood"
            + (f", of which {cut} are cut at max_tokens={parameters.max_tokens}" if cut else "")
            + f". One of {len(shown.text)} characters ends with (letters shown as x, digits as 9):"
            + (lines or " nothing")
            + "\nUnderstood are last lines such as "
            + ", ".join(f"`{line}`" for line in UNDERSTOOD)
            + f", from {LOW:g} to {HIGH:g} in steps of {STEP:g}. Let the template ask for one"
            + (", raise max_tokens" if cut else "")
            + ", take another judge, or scoring by likelihood (`metaopt --help scoring`)."
        )


@dataclass(frozen=True)
class ExpectedChoice(Scoring):
    """The mean of ordered choices under the judge's probabilities; it writes nothing.

        score = LOW + (HIGH - LOW) / (n - 1) * sum_k k p(choice_k) / sum_k p(choice_k), k = 0..n-1

    With the choices No and Yes this is p(yes) / (p(yes) + p(no)), with the digits 0 to 9 the
    expected digit, (sum of k p(k)) plus 1. The sum below is the mass of the choices: how much of
    what the judge would say they are. The template's lines that ask for a written score make way
    for `question`.

    Args:
        choices: texts in the order of what they mean, the failure first; at least two, of which
            none begins another one.
        question: what the judge is asked, after the template.
        prefill: beginning of the answer, such as "Answer:"; choices then begin with the space.
        centred: scores are relative to those of the same objective; see `centre`.

    Raises:
        ValueError: fewer than two choices, or ones that `metaopt.llm.Parameters` refuses.

    References: Liu et al., "G-Eval: NLG Evaluation using GPT-4 with Better Human Alignment", EMNLP
    2023, for the expected digit.
    """

    choices: tuple[str, ...]
    question: str
    prefill: str = ""
    centred: bool = False
    name = "choices"

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if len(self.choices) < 2:
            raise ValueError(f"choices must be two texts or more; got {list(self.choices)}.")
        Parameters(choices=self.choices)

    def request(
        self, template: str, query: str, response: str, parameters: Parameters
    ) -> Request | None:
        """Return the template with this question, the objective and the response."""
        asked = f"{_without_footer(template)}\n{self.question}".lstrip()
        chosen = Parameters(choices=self.choices, prefill=self.prefill)
        return Request("judge", judging(asked, query, response), chosen)

    def read(self, reply: Reply) -> Judgement:
        """Return the mean of the choices; no score where none of them has a probability."""
        mass = sum(reply.probabilities)
        if not mass:
            return Judgement(None, mass)
        mean = sum(k * p for k, p in enumerate(reply.probabilities)) / mass
        return Judgement(score_of(mean / (len(self.choices) - 1)), mass)

    def complaint(
        self, replies: Sequence[Reply], missed: Sequence[Reply], parameters: Parameters
    ) -> str:
        """Return that the judge never says any of the choices."""
        return (
            f"judge: {len(missed)} of {len(replies)} replies give none of the choices "
            f"{', '.join(map(repr, self.choices))} a probability. Take choices that the judge "
            "would say, a prefill that leads to them, or another judge."
        )

    def check(self, template: str, judge: LM) -> None:
        """Refuse a template that asks for a written score in words of its own."""
        if ASKED in _without_footer(template):
            raise ValueError(
                f"template asks for '{ASKED}', while scoring asks for one of "
                f"{', '.join(map(repr, self.choices))}: leave that line out, or take "
                f"scoring=written; got {template[:80]!r}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return {"name": self.name, **asdict(self), "choices": list(self.choices)}


@dataclass(frozen=True)
class ResponseLikelihood(Scoring):
    """How likely the judge would have written the response: no question is asked about it.

        score = LOW + (HIGH - LOW) exp(mean_t log p(response_t | objective, response_<t))

    The mean over the tokens, so that long responses are not unlikely for their length. The scoring
    template is not read, so that there is none to search for.

    Args:
        centred: scores are relative to those of the same objective; see `centre`.
    """

    centred: bool = False
    name = "likelihood"
    reads_template = False

    def request(
        self, template: str, query: str, response: str, parameters: Parameters
    ) -> Request | None:
        """Return the objective as the question, with the response as the only choice."""
        text = response.strip()
        return Request("judge", user(query), Parameters(choices=(text,))) if text else None

    def read(self, reply: Reply) -> Judgement:
        """Return the geometric mean of the tokens' probabilities, on the scale of scores."""
        mean = reply.likelihoods[0].mean
        return Judgement(score_of(math.exp(mean)) if math.isfinite(mean) else None)

    def complaint(
        self, replies: Sequence[Reply], missed: Sequence[Reply], parameters: Parameters
    ) -> str:
        """Return that the judge holds the responses for impossible."""
        return f"judge: {len(missed)} of {len(replies)} responses have the likelihood 0."

    def check(self, template: str, judge: LM) -> None:
        """Refuse a judge that cannot say how likely a text of several tokens is."""
        if isinstance(judge, (SimulatedLM, OpenAICompatibleLM)):
            raise ValueError(
                "scoring by the likelihood of the response takes a model in this process, such as "
                f"llm=transformers; the judge is {judge.model!r}, "
                + ("which is simulated." if judge.deterministic else "of which a server tells the "
                   "probabilities of single tokens.")
            )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return {"name": self.name, **asdict(self)}


KINDS: dict[str, type[Scoring]] = {
    kind.name: kind for kind in (WrittenScore, ExpectedChoice, ResponseLikelihood)
}


def scoring_of(fields: Mapping[str, Any]) -> Scoring:
    """Return the scoring that `Scoring.to_dict` wrote.

    Raises:
        ValueError: an unknown kind, or fields that it does not take.
    """
    values = dict(fields)
    kind = KINDS.get(str(values.pop("name", "")))
    if kind is None:
        raise ValueError(f"scoring must be one of {', '.join(KINDS)}; got {dict(fields)}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"scoring {kind.name}: {error}.") from None


def mean_mass(masses: Iterable[float | None]) -> float | None:
    """Return the mean probability of all choices together; `None` where there are none."""
    known = [mass for mass in masses if mass is not None]
    return math.fsum(known) / len(known) if known else None


def score_of(share: float) -> float:
    """Return the score of a number in [0, 1], 0 for the lowest."""
    return LOW + (HIGH - LOW) * min(max(share, 0.0), 1.0)


def centre(scores: Sequence[float | None], objectives: Sequence[str]) -> list[float | None]:
    """Return scores relative to those of the same objective.

        u = (score - LOW) / (HIGH - LOW),  z = log(u / (1 - u))
        centred score = LOW + (HIGH - LOW) sigmoid(z - mean of z over the objective's responses)

    A judge that holds one objective for likelier than another says so whatever the response is.
    Taking the mean away leaves what it says of the responses; an objective with one response has
    the middle of the scale. `None` stays, and counts in no mean.
    """
    logits = [None if s is None else _logit((s - LOW) / (HIGH - LOW)) for s in scores]
    groups: dict[str, list[float]] = {}
    for z, objective in zip(logits, objectives, strict=True):
        if z is not None:
            groups.setdefault(objective, []).append(z)
    means = {objective: math.fsum(group) / len(group) for objective, group in groups.items()}
    return [
        None if z is None else score_of(_sigmoid(z - means[objective]))
        for z, objective in zip(logits, objectives, strict=True)
    ]


SMALLEST = 1e-12
"""Shares closer than this to 0 or 1 count as this far away: their logits are finite."""


def _logit(share: float) -> float:
    share = min(max(share, SMALLEST), 1 - SMALLEST)
    return math.log(share) - math.log1p(-share)


def _sigmoid(z: float) -> float:
    return 0.5 * (1 + math.tanh(z / 2))


def _without_footer(template: str) -> str:
    return template.rstrip().removesuffix(FOOTER).rstrip()
