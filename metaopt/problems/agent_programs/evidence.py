"""Where a program fails: its errors by the questions' features."""

from __future__ import annotations

from typing import Any

from metaopt.problems.agent_programs.workers import Flags, Ints, Workers

LEAST = 5
"""Fewest questions of a row."""


def errors_by_feature(workers: Workers, questions: Ints, right: Flags) -> list[dict[str, Any]]:
    """Return rows {feature, threshold, questions, wrong}, one for each threshold of each feature.

    A row is about the questions whose feature is above the threshold; rows of fewer than five
    questions are left out.

    Args:
        workers: with the features.
        questions: indices (N,).
        right: whether each was answered right, (N,).
    """
    rows = []
    for feature, thresholds in workers.thresholds.items():
        values = workers.features[feature][questions]
        for threshold in thresholds:
            above = values > threshold
            if above.sum() >= LEAST:
                rows.append({
                    "feature": feature, "threshold": int(threshold),
                    "questions": int(above.sum()), "wrong": int((above & ~right).sum()),
                })  # fmt: skip
    return rows
