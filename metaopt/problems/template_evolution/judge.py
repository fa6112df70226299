"""A calibrated judge for new responses, read back from the `judge.json` of a run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from metaopt.llm import LM, Client, Parameters
from metaopt.metrics.binary import Array
from metaopt.metrics.calibration import CalibratedJudge
from metaopt.problems.template_evolution.candidates import judge as ask_judge
from metaopt.problems.template_evolution.criteria_judge import Criteria, CriteriaJudge
from metaopt.problems.template_evolution.scoring import Scoring, WrittenScore, scoring_of


class Judge:
    """A language model under a scoring template, with its threshold and probabilities.

    Args:
        calibration: template, threshold and probability map.
        client: language models; the role judge is asked, at temperature 0.
        max_tokens: longest answer.
        scoring: what the judge was calibrated by.
    """

    def __init__(
        self,
        calibration: CalibratedJudge,
        client: Client,
        max_tokens: int = 512,
        scoring: Scoring | None = None,
    ) -> None:
        self.calibration, self.client = calibration, client
        self.scoring = scoring or WrittenScore()
        self.parameters = Parameters(0.0, max_tokens)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Return the scores of (query, response) pairs; `None` where an answer holds none.

        Where scoring is centred, they are relative to the responses to the same query among the
        pairs: give all of a query together.

        Raises:
            LMError: more than half of three or more requests failed.
            NotUnderstood: less than a tenth of the replies, of three or more, have a score.
        """
        queries = [query for query, _ in pairs]
        responses = [(i, response) for i, (_, response) in enumerate(pairs)]
        judgements = ask_judge(
            self.client, self.scoring, self.calibration.template, queries, responses,
            self.parameters, True,
        )  # fmt: skip
        return [judgement.score for judgement in judgements]

    def probability(self, pairs: Sequence[tuple[str, str]]) -> Array:
        """Return P(success) of (query, response) pairs; NaN where there is no score."""
        return self.calibration.probability(self.score(pairs))

    def decide(self, pairs: Sequence[tuple[str, str]]) -> Array:
        """Return 1 for success and 0 for failure of the pairs; NaN where there is no score."""
        return self.calibration.decide(self.score(pairs))


def load_judge(
    path: str | Path,
    lm: LM | None = None,
    client: Callable[[Mapping[str, LM]], Client] = Client,
) -> Judge:
    """Return the calibrated judge of a run, ready to score new responses.

    Example:
        >>> judge = load_judge("runs/judge/judge.json")
        >>> judge.score([("What is 2 + 3?", "2+3=<<2+3=5>>5\\nA: 5")])
        [10.0]

    Where a model of `llm=transformers` judged: `lm=TransformersLM("smollm2", dtype="float32")`,
    with the run's own path, dtype and seed.

    Args:
        path: the `judge.json` that a run wrote, or the run's folder.
        lm: the model that judges, such as `OpenAICompatibleLM(...)`; a judge of criteria
            (`llm=criteria`) is in the file and needs none.
        client: makes the client, as `functools.partial(Client, limits={"lm_calls": 1000})`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no judge, or no model was given where it needs one.

    Warns:
        UserWarning: the model is not the one that the threshold and the probabilities were fitted
            for, by its name, which holds the dtype: auto is another one than float32.
    """
    path = Path(path).expanduser()
    path = path / "judge.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give the judge.json in a run's folder.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        calibration = CalibratedJudge.from_dict(record["judge"])
        model = record["provenance"]["models"]["judge"]
        scoring = scoring_of(record["scoring"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no calibrated judge: {error!r}.") from error
    if lm is None and "criteria" not in record:
        raise ValueError(f"{path} was calibrated for the model {model}; give it as lm=.")
    if lm is None:
        fields = record["criteria"]
        lm = CriteriaJudge(Criteria(np.array(fields["mean"]), np.array(fields["scale"])))
    elif lm.model != model:
        warnings.warn(
            f"{path} was calibrated for {model!r}; the scores of {lm.model!r} may mean something "
            "else.",
            stacklevel=2,
        )
    return Judge(calibration, client({"judge": lm}), scoring=scoring)
