"""A rubric on disk, and the judge that scores responses by it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaopt.files.numbers import is_number
from metaopt.llm import LM, Client, SimulatedLM
from metaopt.llm.chat import LocalLM
from metaopt.problems.meta_policy_optimization.item_scores import read_weights
from metaopt.problems.meta_policy_optimization.judging import Judging, WrittenPoints, YesNo
from metaopt.problems.meta_policy_optimization.rubric_world import RubricWorld
from metaopt.problems.meta_policy_optimization.vocabulary import describe
from metaopt.report.judge_report import Assessment

if TYPE_CHECKING:
    from metaopt.problems.meta_policy_optimization.problem import MetaPolicyOptimization

FILE = "rubric.json"
FORMAT = 1
EXAMPLE = describe(("clarity", "padding"))
"""A response that the judge of a simulated world can read."""


class SavedRubric:
    """The rubric of a run, with the judge that follows it.

    Args:
        record: what `to_json` wrote.
        client: language models; the role judge is asked, at temperature 0.
        max_tokens: longest answer, where the record does not say that of the run.
        judging: how the judge is asked; `None` for how it was in the run.

    Raises:
        ValueError: neither `WrittenPoints` nor `YesNo` judged in the run, and no judging is given.

    Attributes:
        text: what the judge is given.
        items: the points of each criterion.
        history: the rubric of each inner run.
        reference: points of the fixed mixture of responses that the run measured the rubric on, in
            ascending order; empty where the truth was not known.
    """

    def __init__(
        self,
        record: Mapping[str, Any],
        client: Client,
        max_tokens: int = 1024,
        judging: Judging | None = None,
    ) -> None:
        self.text: str = record["rubric"]
        self.items = dict(read_weights(self.text))
        self.history: list[str] = list(record["history"])
        self.reference: list[float] = list(record["reference"])
        self.judging = judging or _judging(record, max_tokens)
        self.client = client

    def item_scores(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float] | None]:
        """Return the points of each item for (query, response) pairs.

        `None` stands where the judge's reply does not state the points of every item as asked.

        Raises:
            LMError: more than half of three or more requests failed.
        """
        return self.judging(self.client, self.text, pairs)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Return the sum of the items' points of (query, response) pairs; `None` without one."""
        scores = self.item_scores(pairs)
        return [None if each is None else sum(each.values()) for each in scores]


def _judging(record: Mapping[str, Any], max_tokens: int) -> WrittenPoints | YesNo:
    """Return how the judge was asked in the run."""
    if record.get("yes_no") is not None:
        return YesNo(**record["yes_no"])
    if "written" not in record:  # of an older run
        return WrittenPoints(max_tokens, bool(record.get("per_item")))
    if record["written"] is None:
        raise ValueError(
            f"the rubric was judged by {record['judging']}, which is neither WrittenPoints nor "
            "YesNo, and its points would be others. Give that judging as judging= of load_rubric."
        )
    return WrittenPoints(**record["written"])


class RubricScorer:
    """Scores responses for `metaopt score`: points, and their CDF among the reference.

    The judge of a simulated world does not read the query, so that it needs none; a language model
    is shown it.
    """

    examples = "responses that the rubric was measured on"

    def __init__(self, rubric: SavedRubric) -> None:
        self.rubric, self.judge = rubric, rubric.client.lms["judge"]
        simulated = isinstance(self.judge, SimulatedLM)
        self.columns: Sequence[str] = ("response",) if simulated else ("prompt", "response")

    def __call__(self, rows: Sequence[Sequence[str]], out: Path) -> tuple[Tensor, Tensor]:
        """Return the points of each response, (n,), and their CDF; NaN without a score.

        Args:
            rows: the texts of each row.
            out: the judge's answers are kept in `<out>.cassette`.

        Raises:
            ValueError: the judge states a score for none of them, or that of a simulated world not
                for all; it may cost something and has no budget, or a small one.
            LMError: more than half of three or more requests failed; what was answered is kept.
        """
        pairs = [(query, response) for *_, query, response in [("", *texts) for texts in rows]]
        client = self.rubric.client
        if not self.judge.deterministic:
            self._check_budget(len(pairs) * self.rubric.judging.calls(self.rubric.text))
            client.open(out)
        try:
            points = self.rubric.score(pairs)
        finally:
            client.close()
        unread = [i for i, each in enumerate(points) if each is None]
        if unread and client.stopped:
            raise ValueError(
                f"{client.stopped}: {len(unread)} of {len(points)} rows have no score, and nothing "
                "was written. What was answered is kept; the same command with larger --limits "
                "asks for the rest."
            )
        if len(unread) == len(points) or (unread and isinstance(self.judge, SimulatedLM)):
            reads = f". The judge of a simulated world reads responses such as {EXAMPLE!r}"
            raise ValueError(
                f"{len(unread)} of {len(points)} responses have no score; the first is row "
                f"{unread[0] + 1}, {rows[unread[0]][-1][:60]!r}"
                f"{reads if isinstance(self.judge, SimulatedLM) else _asks(client)}"
            )
        scores = torch.tensor([math.nan if p is None else p for p in points], dtype=torch.float64)
        reference = torch.tensor(self.rubric.reference, dtype=torch.float64)
        below = torch.searchsorted(reference, scores, right=True).double()
        cdf = below / len(reference) if len(reference) else torch.full_like(scores, math.nan)
        return scores, torch.where(scores.isnan(), math.nan, cdf)

    def _check_budget(self, calls: int) -> None:
        try:
            self.rubric.client.require({"judge": calls})
        except ValueError as error:
            if isinstance(self.judge, LocalLM):
                return
            raise ValueError(
                f"the judge {self.judge.model} may cost something, and these rows take {calls:,} "
                f"calls of it: allow them, and as many tries again, with --limits "
                f"lm_calls={calls} lm_requests={2 * calls}."
            ) from error


def _asks(client: Client) -> str:
    """Return what to say of a model of whose replies none states a score."""
    if failures := client.failures():
        return f": {'; '.join(failures)}."
    return (
        ". The judge replies, and no reply states the points of every item as the rubric asks: try "
        "a larger model, or the judging of the run."
    )


def load_rubric(
    path: str | Path,
    lm: LM | None = None,
    client: Callable[[Mapping[str, LM]], Client] = Client,
    judging: Judging | None = None,
) -> SavedRubric:
    """Return the rubric that a run has written, ready to score responses.

    Args:
        path: the `rubric.json` that a run wrote, or the run's folder.
        lm: the model that judges, such as `OpenAICompatibleLM(...)`; the judge of a simulated world
            is in the file.
        client: makes the client, as `functools.partial(Client, limits={"lm_calls": 1000})`.
        judging: how the judge is asked, where a class of yours said so in the run; `None` for how
            it was.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no rubric, or one that was edited since it was measured; or no
            model was given where it needs one; or neither `WrittenPoints` nor `YesNo` judged, and
            no judging was given.

    Warns:
        UserWarning: the model is not the one that judged in the run.
    """
    path = Path(path).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give the {FILE} in a run's folder.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, and this version reads {FORMAT}")
        _refuse_edited(record)
        world, model = record["world"], record["provenance"]["models"]["judge"]
        simulated = None if world is None else RubricWorld(**world).roles()["judge"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} holds no rubric of a run: {error!r}.") from error
    if lm is None and simulated is None:
        raise ValueError(f"{path} was judged by the model {model}; give it as lm= of load_rubric.")
    if lm is not None and lm.model != model:
        warnings.warn(
            f"{path} was judged by {model!r}; the scores of {lm.model!r} may mean something else.",
            stacklevel=2,
        )
    judge = simulated if lm is None else lm
    assert judge is not None
    return SavedRubric(record, client({"judge": judge}), judging=judging)


def _refuse_edited(record: Mapping[str, Any]) -> None:
    """Raise a `ValueError` where a record does not say what one rubric was measured to be.

    A line that is edited into no item would be left out of every score, and the points of the
    reference are those of the rubric as it was.
    """
    if record["items"] != dict(read_weights(record["rubric"])):
        raise ValueError("its rubric was edited, and its items and reference are of another one")
    reference = record["reference"]
    finite = all(is_number(each) and math.isfinite(each) for each in reference)
    if not finite or reference != sorted(reference):
        raise ValueError("its reference must hold numbers in ascending order")
    if not all(isinstance(each, str) for each in record["history"]):
        raise ValueError("its history must hold texts")


def to_json(
    problem: MetaPolicyOptimization,
    inner: Mapping[str, Any],
    assessment: Assessment | None,
    provenance: Mapping[str, Any],
) -> str:
    """Return the text of `rubric.json`: the rubric, its history, its validity, its judge."""
    rubric, policy, judging = inner["rubric"], problem.policy, problem.judging
    points: Sequence[float | None] = ()
    if mixture := problem.examine(rubric):
        points = mixture.points
    record = {
        "format": FORMAT,
        "rubric": rubric,
        "items": dict(read_weights(rubric)),
        "history": list(inner["history"]),
        "validity": assessment and assessment.record,
        "reference": sorted(p for p in points if p is not None),
        "world": policy.saved_judge(),
        # The very classes: how one that inherits from them asks is not in its arguments.
        "yes_no": judging.to_dict() if type(judging) is YesNo else None,
        "written": judging.to_dict() if type(judging) is WrittenPoints else None,
        "judging": type(judging).__name__,
        "provenance": dict(provenance),
    }
    return json.dumps(record, indent=2, allow_nan=False) + "\n"
