"""The script that sets the quality of a table's methods beside what they cost."""

import csv
import json
import runpy
from pathlib import Path

import metaopt.configs
import pytest

SCRIPT = str(
    Path(metaopt.configs.__file__).parents[1] / "experiments/hyper_cleaning/cpu_seconds.py"
)
CONTROLS = ("clean examples alone", "all examples", "right labels (oracle)")


def write_run(folder: Path, label: str, seed: int, timing: dict[str, float]) -> None:
    folder.mkdir(parents=True)
    report = json.dumps({"methods": [*CONTROLS, "SOBA"]})
    config = f"name: demo\nlabel: {label}\nseed: {seed}\nouter_steps: 2\nreport: {report}\n"
    (folder / "config.yaml").write_text(config)
    logs = [
        {"outer_step": step, "eval/test_accuracy": 0.1 * step + 0.2 * seed, "eval/f1": 0.5,
         "budget/gradients": 2 * step, "budget/hvps": step}
        for step in (1, 2)
    ]  # fmt: skip
    logs.insert(1, {"outer_step": 1, "outer/loss": 0.0})  # logged and not evaluated
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in logs))
    metrics = {"eval/test_accuracy": 0.4, "eval/f1": 0.5}
    result = {
        "name": "demo", "overrides": [f"seed={seed}"], "metrics": metrics, "outer_steps": 2,
        "budget": {"gradients": 4, "hvps": 2},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "timing.json").write_text(json.dumps(timing))


def run_script(monkeypatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", [SCRIPT, *map(str, words)])
    runpy.run_path(SCRIPT, run_name="__main__")


@pytest.mark.slow
def test_means_over_seeds_stand_beside_calls_and_cpu_seconds(tmp_path, monkeypatch):
    for i, label in enumerate((*CONTROLS, "SOBA")):
        for seed in (0, 1):
            timing = {"seconds": 50.0, "cpu_seconds": 1.0 + 2 * seed}
            write_run(tmp_path / f"runs/{i}{seed}", label, seed, timing)
    run_script(monkeypatch, tmp_path / "runs", tmp_path)
    lines = (tmp_path / "cpu_seconds.csv").read_text().splitlines()
    rows = list(csv.DictReader(lines))
    assert [row["method"] for row in rows] == [*CONTROLS, "SOBA"]
    assert {k: rows[-1][k] for k in ("n", "accuracy", "f1", "calls", "cpu_s", "cpu_s_max")} == {
        "n": "2", "accuracy": "30.00", "f1": "50.00", "calls": "7", "cpu_s": "2.00",
        "cpu_s_max": "3.00",
    }  # fmt: skip
    assert (tmp_path / "cost.png").stat().st_size > 10_000


def test_a_mistake_is_a_sentence(tmp_path, monkeypatch):
    write_run(tmp_path / "runs/0", "SOBA", 0, {"seconds": 50.0})
    with pytest.raises(SystemExit, match=r"usage: cpu_seconds\.py RUNS TABLE"):
        run_script(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match="lacks finished runs of the controls clean examples"):
        run_script(monkeypatch, tmp_path / "runs", tmp_path)
    for i, label in enumerate(CONTROLS, 1):
        write_run(tmp_path / f"runs/{i}", label, 0, {"seconds": 50.0})
    with pytest.raises(SystemExit, match=r"timing\.json has no cpu_seconds.* compute it again"):
        run_script(monkeypatch, tmp_path / "runs", tmp_path)
    assert not list(tmp_path.glob("cpu_seconds.csv"))
