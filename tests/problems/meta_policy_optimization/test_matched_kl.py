"""The comparison of runs at equal KL divergence."""

import csv
import json
import runpy
from pathlib import Path

import metaopt.configs
import numpy as np
import pytest
from scipy import stats

NAMES = {
    "no merge, eps 0.2": "no merge", "MPO, eps 0.2": "MPO",
    "gate on fresh labels, eps 0.2": "gate on 16 fresh labels a round",
    "labels fitted, no rewriting": "the same labels fitted",
    "sum": "MPO, sum of the points", "mean": "MPO, mean of the points",
}  # fmt: skip
"""Rows of README.md by the labels of the runs, where they differ."""

SCRIPT = Path(metaopt.configs.__file__).parents[1] / "experiments/meta_policy_optimization"


def test_the_quality_at_a_kl_is_read_off_the_first_crossing():
    script = runpy.run_path(str(SCRIPT / "matched_kl.py"))
    at_kl, cell = script["at_kl"], script["cell"]
    curve = [(0.0, 0.0), (2.0, 1.0), (1.0, 5.0), (3.0, 0.0)]
    assert [at_kl(curve, kl) for kl in (1.0, 2.0, 2.5, 3.5)] == [0.5, 1.0, 1.25, None]
    assert cell([curve, curve], 2.0) == "1.00 ± 0.00"
    assert cell([curve, curve, curve[:1]], 1.0) == "0.50 ± 0.00 (2 of 3)"
    assert cell([curve, curve], 4.0) == "0 of 2"


def test_the_committed_points_are_those_of_the_printed_table():
    """Means and intervals of the csv file, by scipy, beside the table of README.md."""
    with (SCRIPT / "matched_kl.csv").open() as file:
        points = list(csv.DictReader(file))
    section = (
        (SCRIPT / "README.md").read_text().partition("### At equal KL")[2].partition("\n##")[0]
    )
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ") for line in lines[1:]]
    assert len(rows) == 10
    assert {label for label, *_ in rows} == {NAMES.get(p["row"], p["row"]) for p in points}
    for label, *cells in rows:
        own = [p for p in points if NAMES.get(p["row"], p["row"]) == label]
        assert [p["seed"] for p in own] == [str(seed) for seed in range(20)]
        for kl, text in zip((1, 2, 3), cells, strict=True):
            gains = [float(p[f"KL {kl}"]) for p in own if p[f"KL {kl}"]]
            if gains:
                half = stats.sem(gains) * stats.t.ppf(0.975, len(gains) - 1)
                assert text.startswith(f"{np.mean(gains):.2f} ± {half:.2f}")
            assert f"({len(gains)} of 20)" in text or len(gains) in (0, 20)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: matched_kl.py FOLDER KL"),
        (["{runs}"], "usage"),
        (["{runs}", "one"], "usage"),
        (["{runs}/run", "1"], "run holds no finished run"),
        (["{runs}", "1"], "run was not evaluated after every inner run; .* with eval_every=1"),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path, monkeypatch, words, said):
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text("{}")
    (run / "config.yaml").write_text("label: MPO\n")
    rows = [{"outer_step": 0}, {"outer_step": 1, "eval/kl": 1.0, "eval/quality": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = str(SCRIPT / "matched_kl.py")
    monkeypatch.setattr("sys.argv", [script, *(word.format(runs=tmp_path) for word in words)])
    with pytest.raises(SystemExit, match=said):
        runpy.run_path(script, run_name="__main__")
