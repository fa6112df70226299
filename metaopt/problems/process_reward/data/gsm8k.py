"""GSM8K's recorded model solutions as chains with an outcome."""

from __future__ import annotations

from metaopt.data.solutions import solutions
from metaopt.problems.process_reward.data.formats import Chain


def gsm8k_solutions(source: str | None = None) -> list[Chain]:
    """Return the recorded solutions as chains: steps are lines, and only the outcome is known.

    Chains of one question share `qid`, its index; `policy` is the system that wrote them (four in
    the published file: Cobbe et al., 2021). The last line holds the answer.

    Args:
        source: as for `metaopt.data.solutions.solutions`, which leaves out responses of unknown
            outcome; `None` is gsm8k/example_model_solutions.jsonl in the data folder.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: malformed rows, listed with file and line; or no row with an outcome.
    """
    recorded = solutions(source)
    return [
        Chain(
            recorded.queries[row.query],
            tuple(line for line in row.response.split("\n") if line.strip()),
            outcome=row.outcome,
            qid=str(row.query),
            domain="gsm8k_solutions",
            policy=row.system,
        )
        for row in recorded.rows
    ]
