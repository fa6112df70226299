"""A few cells of every committed table, recomputed: the tables are what the code gives."""

from pathlib import Path

import pytest

from metaopt.report.check import check_cells
from metaopt.report.collect import collect

TABLES = Path(__file__).parents[1] / "experiments"

CELLS = [
    ("meta_pseudo_labels/two_moons", "", ["method=meta_pseudo_labels/supervised"]),
    (
        "meta_pseudo_labels/digits",
        "",
        ["method=meta_pseudo_labels/soft", "problem.data.labels_per_class=2"],
    ),
    ("domain_reweighting/arithmetic", "", ["method=domain_reweighting/batch_1"]),
    ("domain_reweighting/process_bench", "", ["method=domain_reweighting/meta_only"]),
    ("domain_reweighting/process_bench_minilm", "", ["method=domain_reweighting/uniform"]),
    ("domain_reweighting/curation", "", ["method=domain_reweighting/text_world/meta_only_50"]),
    (
        "tuned_digits/population",
        "",
        ["method=tuned_digits/hypergradient", "problem.noise=0.0"],
    ),
    (
        "scheduled_digits/schedules",
        "",
        ["method=scheduled_digits/untuned", "problem.noise=0.2", "seed=3"],
    ),
    ("hyperparameter_optimization/breast_cancer", "", ["method=hyperparameter_optimization/tpe"]),
    (
        "hyperparameter_optimization/breast_cancer_fresh",
        "",
        ["method=hyperparameter_optimization/random", "seed=10"],
    ),
    ("hyper_cleaning/mnist_linear", "", ["method=hyper_cleaning/meta_weight_net"]),
    ("hyper_cleaning/mnist_500_clean", "", ["method=hyper_cleaning/oracle"]),
    ("hyper_cleaning/mnist_mlp", "", ["method=hyper_cleaning/clean"]),
    ("few_shot/sinusoids", "", ["method=few_shot/untrained"]),
    (
        "few_shot_ranking/simulated",
        "",
        ["method=few_shot_ranking/random", "problem.ranking=knn", "label=kNN"],
    ),
    (
        "few_shot_ranking/cranfield",
        "",
        ["method=few_shot_ranking/random", "problem.ranking=knn", "label=kNN"],
    ),
    (
        "few_shot_ranking/cranfield_two",
        "",
        [
            "method=few_shot_ranking/random",
            "problem.ranking=expanded",
            "label='BM25, expanded query'",
        ],
    ),
    (
        "few_shot_ranking/cisi",
        "",
        ["method=few_shot_ranking/random", "problem.ranking=knn", "label=kNN"],
    ),
    (
        "stochastic_quadratic/solvers",
        "",
        ["method=stochastic_quadratic/soba_decay", "outer_steps=4000", "eval_every=500"],
    ),
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
    ("agent_programs/types", "", ["method=agent_programs/search"]),
    ("agent_programs/one_type", "", ["method=agent_programs/oracle"]),
    (
        "agent_programs/correlation",
        "",
        ["method=agent_programs/vote", "problem.workers.correlation=0.5"],
    ),
    (
        "agent_programs/correlation_one_type",
        "",
        ["method=agent_programs/vote", "problem.workers.correlation=0.0"],
    ),
    (
        "agent_programs/calls",
        "",
        ["method=agent_programs/oracle", "label=oracle", "problem.calls=3"],
    ),
    ("agent_programs/one_type_checked", "", ["method=agent_programs/fixed"]),
    ("agent_programs/gsm8k", "", ["method=agent_programs/fixed"]),
    ("template_evolution/gsm8k_long", "", ["method=template_evolution/judge_calibration/initial"]),
    ("meta_policy_optimization/simulated", "", ["method=meta_policy_optimization/fitted"]),
    (
        "meta_policy_optimization/simulated",
        "",
        ["method=meta_policy_optimization/offline", "problem.policy.world.error=0.5"],
    ),
    (
        "meta_policy_optimization/interval",
        "",
        ["method=meta_policy_optimization/interval", "inner_steps=40", "outer_steps=4"],
    ),
    (
        "meta_policy_optimization/scale",
        "",
        ["method=meta_policy_optimization/scale", "problem.reward_scale=sum"],
    ),
    ("meta_policy_optimization/planted", "", ["method=meta_policy_optimization/expert"]),
    (
        "metric_induction/simulated",
        "",
        [
            "method=metric_induction/search",
            "problem.redundancy_weight=1.0",
            "problem.data.error=0.2",
        ],
    ),
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


REAL_MODELS = {
    "domain_reweighting/process_bench_minilm",
    "few_shot_ranking/cisi",
    "few_shot_ranking/cranfield",
    "few_shot_ranking/cranfield_two",
}
"""Tables on a pretrained model: minutes, or seconds where METAOPT_CACHE holds what it has read."""

LONG = {
    Path("few_shot/sinusoids_long"),
    Path("few_shot_ranking/shared"),
    Path("meta_policy_optimization/text"),
    Path("reward_design/bank"),
    Path("reward_design/cart_pole"),
    Path("reward_design/eureka"),
    Path("reward_design/mountain_car"),
}
"""Tables whose cells train a pretrained model for minutes, or many learners for the better part of
one: `metaopt tables` makes them."""


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
def test_a_cell_is_what_its_table_says(experiment, part, overrides, metaopt, tmp_path):
    seed = [] if any(item.startswith("seed=") for item in overrides) else ["seed=0"]
    done = metaopt(f"experiment={experiment}", *overrides, *seed)
    for line in done.err.splitlines() if done.code else []:
        if "metaopt-fetch" in line or "is in no data folder" in line:
            pytest.skip(line.strip())
    assert done.code == 0, done.err
    runs = collect(tmp_path / "results")
    comparison = check_cells(runs, TABLES / experiment / part / "table.csv")
    assert comparison.off == []
    assert comparison.inexact == []  # to the bit, on the machine that a cell records
    assert comparison.extra == []
    assert len(comparison.equal) + len(comparison.within) == len(runs.cells)


def test_every_committed_table_has_a_cell_among_them():
    tables = {p.parent.relative_to(TABLES) for p in TABLES.rglob("table.csv")}
    named = {Path(experiment) for experiment, *_ in CELLS}
    assert {t for t in tables if not {t, *t.parents} & named} == LONG
