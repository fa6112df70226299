"""What a person sees of a run: plain lines, or in a notebook one line that is rewritten."""

import io
import math
import random
import re
import sys
import time
import types

import pytest
from rich.cells import cell_len
from rich.console import Console as Screen

import metaopt
from metaopt.engine.inner_progress import Progress
from metaopt.problems.examples import Ridge
from metaopt.runs import progress
from metaopt.runs.bar import Bar, _Line
from metaopt.runs.progress import Console, NotebookLine, announced, watcher
from metaopt.runs.run import Run


class ZMQInteractiveShell:
    """Named as the shell of a notebook's kernel."""


class Handle:
    def __init__(self, shown):
        self.texts = [shown["text/plain"]]

    def update(self, shown, raw):
        assert raw
        self.texts.append(shown["text/plain"])


def kernel(monkeypatch, shell):
    """Stand in for IPython; return the handles that were displayed."""
    handles = []

    def display(shown, raw, display_id):
        assert raw
        assert display_id
        handles.append(Handle(shown))
        return handles[-1]

    ipython, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython, module.display = lambda: shell, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return handles


def test_a_notebook_gets_one_line_that_is_rewritten(monkeypatch):
    handles = kernel(monkeypatch, ZMQInteractiveShell())
    with watcher("ridge, seed 0", 100, 20) as bar:
        assert isinstance(bar, NotebookLine)
        bar.log(50, {"outer/loss": 0.25, "eval/test_loss": 0.5, "time/elapsed_s": 1.0})
        bar.log(100, {"outer/loss": 0.125})
    (handle,) = handles
    assert handle.texts[0] == f"ridge, seed 0  [{'#' * 4}{'.' * 20}]  20/100"
    assert handle.texts[1].startswith(f"ridge, seed 0  [{'#' * 12}{'.' * 12}]  50/100  ")
    assert handle.texts[1].endswith("s left  outer/loss 0.25  eval/test_loss 0.5")
    assert handle.texts[2].endswith("  0 s left  outer/loss 0.125  eval/test_loss 0.5")


def test_ipython_in_a_terminal_gets_what_a_terminal_gets(monkeypatch):
    handles = kernel(monkeypatch, object())
    assert isinstance(watcher("ridge", 10), Console)
    assert not handles


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_inner_steps_of_a_long_outer_step(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Progress()
    with watcher("ridge, seed 0", 10) as bar:
        assert isinstance(bar, Bar)
        bar.follow(progress)
        with progress.phase("inner step", 10_000) as phase:
            phase.done = 1_340
            bar._line.refresh()  # by the bar's own thread elsewhere
            assert "inner step" not in sys.stderr.getvalue()
            bar._line.inner.since -= 2
            bar._line.refresh()
    assert "inner step 1,340/10,000" in sys.stderr.getvalue()
    assert capsys.readouterr().out == ""


def drawn(width, label, metrics, inner=None):
    """Return the lines of a bar at step 1,234 of 20,000 on a terminal of a width."""
    line = _Line(Screen(file=io.StringIO(), width=width, force_terminal=True))
    task = line.add_task(label, total=20_000, completed=1_234, shown=metrics)
    if inner is not None:
        line.inner.progress = inner
    table = line.make_tasks_table(line.tasks)
    line.remove_task(task)
    return [
        "".join(segment.text for segment in segments)
        for segments in line.console.render_lines(table, pad=False)
    ]


METRICS = {"outer/loss": -1.234e-05, "eval/accuracy_of_the_domain_named_first": 0.98765}


@pytest.mark.parametrize("width", [80, 60])
def test_bar_counter_and_time_survive_a_narrow_terminal(width):
    progress = Progress()
    with progress.phase("inner step", 10_000) as phase:
        phase.done = 1_340
        (line,) = drawn(width, "Domain reweighting with a learned rater, seed 0", METRICS, progress)
    assert "━" * 7 in line
    assert " 1234/20000 -:--:-- " in line
    assert ("inner step 1,340/10,000" in line) == (width == 80)
    assert line.startswith("Domain re")


def test_no_line_wraps_and_no_metric_runs_into_its_value():
    draw = random.Random(0)
    for _ in range(300):
        width = draw.randint(32, 160)
        label = "評価 " * draw.randint(0, 3) + "x" * draw.randint(0, 60)
        names = ["outer/loss", *("eval/" + "m" * draw.randint(1, 50) for _ in range(2))]
        metrics = {name: draw.choice([1.0, -1e-30, math.nan, 123456.0]) for name in names}
        (line,) = drawn(width, label, metrics)
        assert cell_len(line) <= width
        assert re.search(r"[━╺╸]{8,} +1234/20000 -:--:--", line)
        shown = re.findall(r"((?:outer|eval)/\S*) (\S+)", line.partition("-:--:--")[2])
        values = {f"{value:.4g}" for value in metrics.values()}
        assert all(value in values for _, value in shown)


def test_a_wide_terminal_shows_all():
    (line,) = drawn(200, "ridge, seed 0", METRICS)
    assert re.match("ridge, seed 0 [━╺╸]{24} ", line)
    last = "outer/loss -1.234e-05  eval/accuracy_of_the_domain_named_first 0.9877"
    assert line.rstrip().endswith(last)


def test_a_run_lets_its_watcher_follow_the_inner_run():
    followed = []

    class Watch(Console):
        def follow(self, progress):
            followed.append(progress)

    engine = metaopt.Engine(Ridge(), metaopt.Unroll(2), metaopt.Descent("sgd"), outer_steps=1)
    Run(engine, None, {"name": "ridge"}, watch=lambda label, total, done: Watch(total))()
    assert followed == [engine.loop.progress]


def test_a_pipe_gets_plain_lines(capsys):
    Console(total=20).log(10, {"outer/loss": 0.123456, "time/step_s": 1.0})
    assert capsys.readouterr().out == "step 10/20  outer/loss 0.1235\n"


def test_lines_that_come_too_soon_are_left_out_but_never_an_evaluation(capsys):
    tracker = Console(total=3)
    tracker.log(1, {"outer/loss": 1.0})
    tracker.log(2, {"outer/loss": 2.0})
    tracker.log(3, {"eval/accuracy": 0.5})
    assert capsys.readouterr().out == "step 1/3  outer/loss 1\nstep 3/3  eval/accuracy 0.5\n"


def test_what_precedes_the_first_step_is_said_where_it_lasts(monkeypatch, capsys):
    class Slow(Ridge):
        def __init__(self):
            super().__init__()
            self.batch, self.name_of_batch = 96, "x"

        def outer_loss(self, outer, inner, batch):
            time.sleep(0.02)
            return super().outer_loss(outer, inner, batch)

    def run():
        parts = (metaopt.Unroll(1), metaopt.Descent("sgd", lr=0.1))
        metaopt.run(Slow(), *parts, outer_steps=0, progress=True)
        return capsys.readouterr().err

    assert "Before the first step" not in run()
    monkeypatch.setattr(progress, "QUIET_S", 0.01)
    assert (
        "Before the first step: checking Unroll on the losses of Slow, some ten passes over "
        "batches as large as the run's (batch=96); smaller ones are checked sooner.\n"
    ) in run()


def test_an_announcement_of_nobody_is_not_made(monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    with announced("words", shown=False):
        time.sleep(0.01)
    assert capsys.readouterr().err == ""
