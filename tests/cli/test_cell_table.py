"""What is shown of a multirun: at 80 columns, and in a narrow terminal."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metaopt.cli.cell_table import heading, in_words, line, table
from metaopt.cli.cells import Cell, Multirun
from metaopt.runs.fitting import shortened

LONG = "problem.inner_optimizer.lr=0.00017,estimator=finite_difference,method=family/of_a_long_name"
METRICS = {
    "outer/loss": 0.25, "eval/test_accuracy": 0.98765, "eval/teacher_accuracy_of_the_last_ten": 0.5,
    "eval/c": 1e-7, "eval/d": 3.0,
}  # fmt: skip


def cell(name: str = "seed=0", folder: Path = Path("cell"), **state: Any) -> Cell:
    made = Cell(name, folder, Path("none.json"), f"metaopt {name}", state.pop("stated", ()))
    for key, value in state.items():
        setattr(made, key, value)
    made._changed = time.monotonic()
    return made


def running(name: str, step: int = 12, left: float | None = 28.0, phase: str = "") -> Cell:
    record = {"step": step, "total": 1000, "left": left, "seconds": 10.0, "phase": phase}
    return cell(name, status="running", record=record)


def of(*cells: Cell, total: int | None = None) -> Multirun:
    multirun = Multirun()
    multirun.folder, multirun.cells, multirun.total = Path("results/ridge"), list(cells), total
    return multirun


def rendered(multirun: Multirun, width: int = 80, height: int = 24) -> list[str]:
    screen = Console(width=width, height=height, file=io.StringIO(), force_terminal=False)
    screen.print(table(multirun, width, height))
    assert isinstance(screen.file, io.StringIO)
    return [text.rstrip() for text in screen.file.getvalue().splitlines()]


@pytest.mark.parametrize("name", ["seed=0", LONG[:45], LONG, LONG * 3])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_line_has_room_for_whole_values_beside_any_name(name: str, width: int) -> None:
    text = line(cell(name, status="finished", metrics=METRICS, seconds=83.0), "12/40", 300, width)
    assert len(text) <= width
    place, shown, *values = re.split(r" {2,}", text)
    assert (place, values[0], values[-1]) == ("12/40", "test_accuracy 0.9877", "1 min 23 s")
    assert shown == shortened(name, len(shown), both_ends=True)
    assert len(shown) >= min(len(name), 16)


def test_a_line_shows_the_metrics_of_the_report_and_else_a_few() -> None:
    stated = ("eval/d", "eval/absent", "outer/loss")
    done = cell(status="finished", metrics=METRICS, stated=stated)
    assert line(done, "1/1", 6, 80) == "1/1  seed=0  d 3  outer/loss 0.25"
    done = cell(status="finished", metrics=METRICS)
    assert line(done, "1/1", 6, 200).count("  ") == 4
    assert "outer/loss" not in line(done, "1/1", 6, 200)


def test_drawn_numbers_of_a_search_are_rounded_in_what_is_shown() -> None:
    name = "outer_lr=0.012906392710974313 inner_steps=8 estimator=unroll"
    brief = "outer_lr=0.01291 inner_steps=8 estimator=unroll"
    done = cell(name, status="finished", metrics={"eval/test_loss": 0.09408}, seconds=1.7)
    assert line(done, "12/20", 47, 80) == f"12/20  {brief}  test_loss 0.09408  1.7 s"
    assert brief in rendered(of(running(name)), 120)[1]


@pytest.mark.parametrize("name", ["seed=0", LONG, LONG * 3])
def test_a_line_of_a_failure_says_why_as_far_as_there_is_room(name: str) -> None:
    failed = cell(name, status="failed", message="inner_steps must be >= 1;\ngot 0. " * 9)
    text = line(failed, "1/3", 300, 80)
    assert len(text) <= 80
    assert "  failed: inner_steps must be" in text
    assert text.endswith("…")


@pytest.mark.parametrize("phase", ["", "inner step 1,340/10,000"])
def test_the_table_has_whole_values_at_80_columns(phase: str) -> None:
    cells = [running(LONG, left=None), running(LONG * 2, 999, 7200.0, phase), running("seed=3")]
    head, *rows = rendered(of(*cells, cell("seed=4"), total=40))
    assert head == "results/ridge: 0 of 40 done, 3 running, 37 waiting, about 1 d 16 h left"
    assert len(rows) == 3
    assert all(len(row) <= 80 for row in rows)
    assert re.search(r"  999/1,000  2 h left", rows[1])
    assert (phase in rows[1]) is True
    assert re.search(r"^seed=3 +12/1,000   28 s left$", rows[2])
    assert "…" in rows[0]
    assert "left" not in rows[0]


def test_a_narrow_table_gives_up_the_phase_before_the_name() -> None:
    (_, row) = rendered(of(running(LONG, phase="inner step 1,340/10,000")), width=56)
    assert "inner step" not in row
    assert row.endswith("12/1,000  28 s left")
    assert len(row.partition("  ")[0]) >= 16


def test_a_table_is_no_higher_than_the_screen() -> None:
    lines = rendered(of(*(running(f"seed={i}") for i in range(50))), height=10)
    assert len(lines) == 8
    assert lines[-1] == "and 44 more running"


def test_killed_and_silent_workers_are_shown() -> None:
    killed, silent = running("seed=0"), running("seed=1")
    killed.status = "killed"
    silent._changed -= 75
    head, *rows = rendered(of(killed, silent))
    assert "1 running, 1 killed" in head
    assert rows[0].endswith("killed")
    assert rows[1].endswith("silent for 1 min 15 s")


@pytest.mark.parametrize("title", ["results/ridge", "results/" + LONG])
def test_a_heading_counts_and_has_one_line(title: str) -> None:
    over = [cell(status=s) for s in ("finished", "finished", "pruned", "failed")]
    multirun = of(*over, running("x"), cell(), total=10)
    multirun.folder = Path(title)
    text = heading(multirun, 80)
    assert len(text) <= 80
    assert text.endswith("3 of 10 done, 1 running, 1 failed, 5 waiting, about 4 min left")


def test_time_left_is_shared_by_those_that_run_at_once() -> None:
    assert of(cell(), cell()).left_s() is None
    assert of(running("x", left=None), cell()).left_s() is None
    # 10 s of 38 are over; two more wait that take the mean of 38 and 20.
    multirun = of(cell(status="finished", seconds=20.0), running("x"), cell(), cell())
    assert multirun.left_s() == pytest.approx(28 + 2 * 29)
    multirun.workers = 2
    assert multirun.left_s() == pytest.approx((28 + 2 * 29) / 2)
    multirun.cells = multirun.cells[:2]
    assert multirun.left_s() == 28  # nobody can help the last one
    assert of(*(cell(status="finished", computed=False) for _ in range(2))).left_s() is None


def test_long_texts_are_cut_and_durations_have_two_units() -> None:
    for both_ends in (False, True):
        lengths = [len(shortened(LONG, n, both_ends)) for n in (20, 21, 200)]
        assert lengths == [20, 21, len(LONG)]
    assert [in_words(x) for x in (0, 9.96, 59.9, 60, 3600, 86_399)] == [
        "0.0 s", "10 s", "60 s", "1 min", "1 h", "23 h 59 min",
    ]  # fmt: skip


def test_a_heading_counts_cells_of_another_command_apart() -> None:
    over = cell(status="finished", seconds=20.0)
    left = cell(status="elsewhere", shared=True)
    assert heading(of(over, left, cell()), 80).endswith(
        "1 of 3 done, 1 elsewhere, 1 waiting, about 20 s left"
    )
