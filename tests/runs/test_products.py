"""What a run says of its results: the folder's README and the value in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import metaopt
from metaopt import Descent, Report, Unroll
from metaopt.problems.examples import Ridge


class Delivers(Report):
    def deliver(self, outer: Any, inner: Any, snapshots: Any, folder: Path) -> str:
        (folder / "model").mkdir()
        (folder / "weights.csv").write_text("w\n1\n")
        return "delivered"


def run(folder: Path, report: Report | None) -> metaopt.Result:
    problem = Ridge()
    problem.report = report
    return metaopt.run(
        problem, Unroll(inner_steps=2), Descent("adam", lr=0.1), 2, folder=folder, progress=False
    )


@pytest.mark.slow
def test_a_readme_names_what_was_delivered_beside_what_every_run_writes(tmp_path: Path) -> None:
    run(tmp_path / "a", Delivers())
    page = (tmp_path / "a" / "README.md").read_text()
    assert page.splitlines()[-1].startswith("Delivered: `model/`, `weights.csv`; ")
    run(tmp_path / "b", None)
    assert "Delivered" not in (tmp_path / "b" / "README.md").read_text()


def test_a_result_is_shown_by_shapes_and_metrics(tmp_path: Path) -> None:
    result = run(tmp_path / "a", None)
    first, outer, inner, metrics = repr(result).splitlines()
    assert first == f"Result({tmp_path / 'a'}: finished, 2 outer steps"
    size = list(next(iter(result.outer.values())).shape)
    assert outer == f"  outer: {{{next(iter(result.outer))}: tensor{size}}}"
    assert "tensor[" in inner
    assert "eval/test_loss" in metrics
    assert len(repr(result)) < 1000
