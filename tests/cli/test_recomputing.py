"""`metaopt tables`: tables are recomputed and compared, and a second time nothing is computed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from metaopt.cli import folders
from metaopt.cli.committed import cells_of, committed
from metaopt.cli.loading import composing
from metaopt.report.command import main as report

Metaopt = Callable[..., Any]
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
COMMITTED = sorted(
    {"/".join(p.relative_to(EXPERIMENTS).parts[:2]) for p in EXPERIMENTS.rglob("table.csv")}
)

SMALL = """
# @package _global_
# two estimators, two seeds
defaults:
  - override /problem: ridge

name: small
outer_steps: 3
figures: false
methods:
  - {estimator: unroll, label: unrolled}
  - {estimator: implicit, label: implicit}
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      seed: 0,1
"""


@pytest.fixture
def small(metaopt: Metaopt, tmp_path: Path) -> Metaopt:
    """A committed table of an experiment of one's own; the runs that made it are gone."""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/small.yaml").write_text(SMALL)
    assert metaopt("--config-dir=conf", "experiment=small").code == 0
    assert report(["results/small"]) == 0
    (tmp_path / "experiments/small").mkdir(parents=True)
    for name in ("table.csv", "table.md"):
        shutil.copy(tmp_path / "results/small/report" / name, tmp_path / "experiments/small")
    shutil.rmtree(tmp_path / "results")
    return lambda *arguments: metaopt("tables", "--config-dir=conf", *arguments)


@pytest.mark.slow
def test_a_table_is_recomputed_once_and_compared(small: Metaopt, tmp_path: Path) -> None:
    done = small("--exact")
    assert done.code == 0, done.err
    assert "small: 4 runs" in done.out
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[:6] for line in lines if line[:1] == ["small"]] == [
        ["small", "4", "4", "0", "0", "0"]
    ]
    results = sorted(tmp_path.glob("results/small/*/result.json"))
    before = [path.stat().st_mtime_ns for path in results]
    assert len(results) == 4
    done = small("small", "--exact")
    assert done.code == 0
    assert "eval/" not in done.out  # as each run prints that is computed
    assert "left to compute: 0.0" in done.out
    assert [path.stat().st_mtime_ns for path in results] == before


@pytest.mark.slow
def test_what_differs_and_what_no_config_makes_is_told(small: Metaopt, tmp_path: Path) -> None:
    table = tmp_path / "experiments/small/table.csv"
    head, *rows = table.read_text().splitlines()
    rows.sort(key=lambda row: not row.startswith("unrolled"))
    column = head.split(",").index("outer_steps")
    cells = rows[0].split(",")
    cells[column] = "4"
    table.write_text(
        "\n".join([head, ",".join(cells), *rows[2:], rows[0].replace("unrolled", "other"), ""])
    )
    done = small()
    assert done.code == 1
    assert "small: 3 runs" in done.out  # seed 1 of the first method is not in the table
    assert "small: unrolled, seed 0, outer_steps: 4.0" in done.err
    assert "small: other, seed 0: no finished run" in done.err
    assert "small: no config of small has the label 'other'" in done.err
    assert "1 of 1 tables differ or lack cells." in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["large"], "large is no table of experiments. There are:\n  small"),
        (["--experiments=elsewhere"], "There is no table.csv below elsewhere. Run this in the"),
        (["--jobs=0"], "must be a whole number >= 1; got 0"),
    ],
)
def test_mistakes_are_named(
    metaopt: Metaopt, tmp_path: Path, arguments: list[str], words: str
) -> None:
    path = tmp_path / "experiments/small/table.csv"
    path.parent.mkdir(parents=True)
    path.write_text("method,seed,eval/x\nplain,0,1.0\n")
    done = metaopt("tables", *arguments)
    assert done.code != 0
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_table_of_no_experiment_is_named(metaopt: Metaopt, tmp_path: Path) -> None:
    path = tmp_path / "experiments/small/table.csv"
    path.parent.mkdir(parents=True)
    path.write_text("method,seed,eval/x\nplain,0,1.0\n")
    done = metaopt("tables")
    assert (done.code, "has no experiment that makes it" in done.err) == (1, True)


def test_the_docs_say_how_long_all_tables_take() -> None:
    text = (EXPERIMENTS.parent / "docs" / "tables.md").read_text()
    stated = re.search(r"about (\d+) core hours", text)
    assert stated
    hours = sum(table.seconds(table.rows) for table in committed(EXPERIMENTS)) / 3600
    assert 0.8 * hours < float(stated[1]) < 1.25 * hours


def test_tables_that_ask_a_language_model_are_told_apart() -> None:
    folders.use([])
    tables = committed(EXPERIMENTS)
    asking = {table.name for table in tables if table.asks(table.rows)}
    assert "template_evolution/gsm8k_likelihood" in asking
    assert "template_evolution/simulated" not in asking


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMITTED)
def test_every_committed_method_has_a_config(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Rows that were made by a command of their own included."""
    monkeypatch.chdir(EXPERIMENTS.parent)
    folders.use([])
    tables = [each for each in committed(EXPERIMENTS, [name]) if each.experiment == name]
    assert [table.devices for table in tables] == [["cpu"]] * len(tables)
    with composing() as hydra:
        cells, unknown = cells_of(hydra, name, tables)
    assert unknown == []
    assert sum(len(table.rows) for table in tables) / len(cells) in (1, 3, 5, 8, 10, 16)  # seeds
    assert not GlobalHydra.instance().is_initialized()
