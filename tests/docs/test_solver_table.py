"""The docs' table of estimators has a row for each that is shipped, with the error that it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metaopt.cli import folders

PAGE = Path(__file__).parents[2] / "docs" / "choosing_an_estimator.md"
HEADINGS = (
    "`estimator=` (papers)", "hypergradient", "needs", "cost; memory", "rate", "error", "choose it"
)  # fmt: skip
PAPERS = (
    "MAML", "FOMAML", "Reptile", "iMAML", "ITD", "RHG", "AID", "HOAG", "T1-T2", "DARTS", "StocBiO",
    "AmIGO", "BSA", "TTSA", "SOBA", "MA-SOBA", "SABA", "SRBA", "F2SA", "PBGD", "BOME", "SAMA",
    "PES",
)  # fmt: skip


def rows() -> dict[str, dict[str, str]]:
    """Return the rows of the table by estimator, each by heading."""
    text = PAGE.read_text(encoding="utf-8")
    _, _, table = text.partition(f"| {' | '.join(HEADINGS)} |\n")
    result = {}
    for line in table.split("\n\n")[0].splitlines()[1:]:
        cells = dict(zip(HEADINGS, line.strip("| ").split(" | "), strict=True))
        name = re.match("`(\\w+)`", cells[HEADINGS[0]])
        assert name is not None, line
        assert name[1] not in result
        result[name[1]] = cells
    return result


def test_each_estimator_has_a_row() -> None:
    assert rows().keys() == folders.groups()["estimator"].keys()
    assert all(cell for row in rows().values() for cell in row.values())


def test_the_papers_are_in_the_table_and_most_in_the_help() -> None:
    names = " ".join(row[HEADINGS[0]] for row in rows().values())
    helped = " ".join(folders.groups()["estimator"].values())
    for paper in PAPERS:
        assert re.search(rf"\b{paper}\b", names)
        assert re.search(rf"\b{paper}\b", helped)


@pytest.mark.slow
def test_the_errors_are_those_of_the_code() -> None:
    from benchmarks.closed_form import WITHOUT, errors

    printed = {name: row["error"] for name, row in rows().items()}
    assert {name for name, error in printed.items() if error == "–"} == {*WITHOUT}
    measured = errors()
    assert measured.keys() == printed.keys() - {*WITHOUT}
    for name, values in measured.items():
        shown = [float(word) for word in printed[name].split(", then ")]
        # Two digits; what is round-off of the solve has other digits on another CPU.
        assert values == pytest.approx(shown, rel=0.06, abs=1e-8), name
