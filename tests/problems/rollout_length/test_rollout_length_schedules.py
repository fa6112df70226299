"""Adaptive rollout length: schedules of an experiment's cells, pooled over seeds."""

import csv
import json
import re

import pytest
import torch

from metaopt.files.tensors import write_tensors
from metaopt.optimizers import recorded
from metaopt.problems.rollout_length.schedules import main, pooled

PROBLEM = {"runs": 2, "steps": 60, "phase": 20, "tests": ["default", "heavy"], "groups": None}


def cell(folder, method, seed, lengths, score=5.0, **changes):
    """A finished run: at each of three decisions its two runs have these lengths."""
    path = folder / f"{method}-{seed}"
    (path / "snapshots").mkdir(parents=True)
    problem = {**PROBLEM, **changes}
    (path / "config.yaml").write_text(
        json.dumps({"label": method, "seed": seed, "outer_steps": 3, "problem": problem})
    )
    (path / "result.json").write_text(json.dumps({"metrics": {}}))
    runs = problem["runs"]
    default = torch.tensor(lengths).expand(runs, 3)
    records = {
        "lengths": torch.stack([default, default + 1]),
        "scores": torch.full((2, runs, 4), score) + torch.arange(4),
        "updates": torch.full((2, runs), 7.0),
    }
    early = {k: torch.full_like(v, torch.nan) for k, v in records.items()}
    write_tensors(path / "snapshots" / "step_00000003.pt", early)
    write_tensors(path / "snapshots" / "step_00000008.pt", records)


@pytest.fixture
def cells(tmp_path):
    cell(tmp_path, "learned", 0, [0.0, 4, 8])
    cell(tmp_path, "learned", 1, [2.0, 4, 2], score=9.0)
    cell(tmp_path, "K = 3", 0, [3.0, 3, 3])
    cell(tmp_path, "K = 3", 1, [3.0, 3, 3])
    return tmp_path


def test_runs_of_a_method_are_those_of_all_seeds(cells):
    tests, groups, phase = pooled(cells, ["learned", "K = 3"])
    assert (groups.names, groups.each, phase) == (["learned", "K = 3"], 4, 20)
    assert list(tests) == ["default", "heavy"]
    assert tests["default"]["lengths"][:4].tolist() == [[0, 4, 8]] * 2 + [[2, 4, 2]] * 2
    assert tests["heavy"]["lengths"][4:].tolist() == [[4, 4, 4]] * 4
    assert tests["default"]["scores"][:, -1].tolist() == [8.0] * 2 + [12.0] * 2 + [8.0] * 4


def test_command_writes_tables_a_figure_and_a_schedule_to_replay(cells, capsys, monkeypatch):
    """The figure is that of a run, which `test_rollout_length_report.py` draws."""
    module, out, drawn = "metaopt.problems.rollout_length.schedules", cells / "out", []
    monkeypatch.setattr(f"{module}.draw_schedules", lambda *given: drawn.append(given) or given[3])
    assert main([str(cells), "--mean", "learned", "--out", str(out)]) == 0
    assert "| learned | 1 | 3.33 | 5 | 10.0 ± 1.2 |" in capsys.readouterr().out
    replay = recorded(out / "schedule.csv")
    assert [replay(x) for x in (0.0, 0.5, 1.0)] == [1, 4, 5]
    lines = list(csv.DictReader((out / "schedules.csv").read_text().splitlines()))
    assert len(lines) == 2 * 2 * 3
    (line,) = [
        x for x in lines
        if (x["test"], x["method"], x["decision"]) == ("heavy", "learned", "0")
    ]  # fmt: skip
    assert (line["real_steps"], line["length"], line["score"]) == ("20", "2", "8")
    ((tests, groups, phase, path),) = drawn
    assert (list(tests), groups.each, phase) == (["default", "heavy"], 4, 20)
    assert path == out / "schedules.png"


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        (None, ["--methods", "unlearned"], r"methods among \[.*\]; got \['unlearned'\]"),
        (None, ["--methods", "learned", "--mean", "K = 3"], r"--mean among .*; got 'K = 3'"),
        ({"runs": 3}, [], "as many inner runs each, .*'odd': 3"),
        ({"phase": 30}, ["--methods", "odd", "K = 3"], "of the same tests, steps and phase"),
        ({"groups": ["a", "b"]}, [], "one method each; .*odd-0 is another"),
        ({"score": torch.nan}, ["--methods", "odd"], "whose tests are over; those of .*odd-0"),
    ],
)
def test_mistakes_are_said(cells, capsys, changes, arguments, said):
    if changes is not None:
        cell(cells, "odd", 0, [1.0, 1, 1], **changes)
    assert main([str(cells), *arguments]) == 2
    assert re.search(said, capsys.readouterr().err)
