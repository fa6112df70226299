"""A few cells of every committed table, recomputed: the tables are what the code gives."""

from pathlib import Path

import pytest

from metaopt.report.command import main as report

TABLES = Path(__file__).parents[1] / "experiments"

CELLS = [
    ("meta_pseudo_labels/two_moons", "", ["method=meta_pseudo_labels/supervised"]),
    ("meta_pseudo_labels/two_moons", "", ["method=meta_pseudo_labels/cosine"]),
    (
        "meta_pseudo_labels/digits",
        "",
        ["method=meta_pseudo_labels/soft", "problem.data.labels_per_class=2"],
    ),
    ("domain_reweighting/arithmetic", "", ["method=domain_reweighting/batch_1"]),
    ("domain_reweighting/process_bench", "", ["method=domain_reweighting/meta_only"]),
    ("domain_reweighting/process_bench_minilm", "", ["method=domain_reweighting/uniform"]),
    ("domain_reweighting/curation", "", ["method=domain_reweighting/text_world/meta_only_50"]),
    ("reward_model/noise", "30", ["method=reward_model/restore", "problem.task.data.noise=0.3"]),
    ("reward_model/matched_kl", "", ["method=reward_model/restore"]),
    ("reward_model/strength", "", ["method=reward_model/band", "problem.task.labels.index=3"]),
    ("reward_model/real_text", "0", ["method=reward_model/restore", "problem.task.data.noise=0.0"]),
    ("template_evolution/simulated", "", ["method=template_evolution/paper"]),
    ("template_evolution/ablation", "", ["method=template_evolution/blind"]),
    (
        "template_evolution/budget",
        "",
        ["method=template_evolution/budget", "inner_steps=12", "outer_steps=3"],
    ),
    (
        "template_evolution/gsm8k",
        "",
        ["method=template_evolution/judge_calibration/balanced_brier"],
    ),
    (
        "template_evolution/gsm8k_likelihood",
        "",
        ["method=template_evolution/judge_calibration/logistic"],
    ),
    ("template_evolution/gsm8k_long", "", ["method=template_evolution/judge_calibration/initial"]),
    (
        "rollout_length/cartpole",
        "",
        ["method=rollout_length/constant", "optimizer.function.value=8", "seed=100"],
    ),
    (
        "rollout_length/speed",
        "",
        [
            "method=rollout_length/constant",
            "optimizer.function.value=4",
            "problem.runs=4",
            "label='R = 4'",
        ],
    ),
]


REAL_MODELS = {"domain_reweighting/process_bench_minilm"}
"""Tables on a pretrained model: minutes, or seconds where METAOPT_CACHE holds what it has read."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "part", "overrides"),
    [
        pytest.param(
            experiment, part, overrides, id=f"{experiment}/{part}" if part else experiment,
            marks=[pytest.mark.realmodel] if experiment in REAL_MODELS else [],
        )
        for experiment, part, overrides in CELLS
    ],
)  # fmt: skip
def test_a_cell_is_what_its_table_says(experiment, part, overrides, metaopt, tmp_path, capsys):
    seed = [] if any(item.startswith("seed=") for item in overrides) else ["seed=0"]
    done = metaopt(f"experiment={experiment}", *overrides, *seed)
    if done.code and "metaopt-fetch" in done.err:
        pytest.skip(done.err.strip().splitlines()[-1])
    assert done.code == 0, done.err
    table = TABLES / experiment / part / "table.csv"
    code = report([str(tmp_path / "results"), "--check", str(table)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "cells of" in printed.out
    assert "0 cells" not in printed.out


def test_every_committed_table_has_a_cell_among_them():
    tables = {p.parent.relative_to(TABLES) for p in TABLES.rglob("table.csv")}
    named = {Path(experiment) for experiment, *_ in CELLS}
    assert {t for t in tables if not {t, *t.parents} & named} == set()
