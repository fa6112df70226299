"""Run folders with made-up numbers, for reports on them."""

import json

import numpy as np
import yaml

REPORT = {
    "title": "Two methods",
    "metrics": ["eval/accuracy", "eval/loss"],
    "baseline": "plain",
    "methods": ["plain", "better"],
    "scale": {"eval/accuracy": 100},
    "digits": {"eval/accuracy": 1},
    "labels": {"eval/accuracy": "accuracy, %"},
    "command": "metaopt experiment=some/table",
    "reported": [
        {
            "method": "paper",
            "metric": "eval/accuracy",
            "value": "96.1",
            "source": "A",
            "recall": True,
        }
    ],
}


def accuracy(row, seed):
    return {"plain": 0.8, "better": 0.9}.get(row, 0.5) + 0.01 * np.cos(7.0 * seed + len(row or ""))


def write_run(folder, seed, row=None, overrides=(), inner_steps=5, report=None, **result):
    folder.mkdir(parents=True)
    config = {"name": "demo", "label": row, "seed": seed, "outer_steps": 10, "report": report}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    value = float(accuracy(row, seed))
    lines = [
        {
            "outer_step": step,
            "outer/loss": 1 / step,
            "eval/accuracy": value * step / 10,
            "budget/inner_steps": step * inner_steps,
        }
        for step in range(1, 11)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = {
        "name": "demo",
        "overrides": [*overrides, f"seed={seed}"],
        "metrics": {"eval/accuracy": value, "eval/loss": 1 - value, "outer/loss": 0.1},
        "budget": {"gradients": 100.0},
        "outer_steps": 10,
        "stopped": None,
        "versions": {"torch": "2.13"},
        "commit": "abc",
        "hardware": {"cpu": "some"},
        **result,
    }
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "timing.json").write_text('{"seconds": 2.0}')
    return folder


def cells(text, row):
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]
