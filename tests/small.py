"""What makes a shipped problem small enough for tests that run every option."""

from __future__ import annotations

import json
from pathlib import Path

from metaopt.problems.process_reward.data.formats import Chain, write

WORLD = [
    "inner_steps=2", "problem.task.queries=2", "problem.candidates=4", "problem.inherited=2",
    "problem.prompts_per_step=2", "problem.screening_pool=8",
]  # fmt: skip
REWEIGHTING = [
    "problem.batch=16", "problem.meta_batch=40", "problem.reference_steps=4", "inner_steps=2",
    "outer_lr=0.1", "problem.inner_optimizer.lr=1.0e-2",
]  # fmt: skip
CURATION = [
    "problem.task.data.rows=20", "problem.task.data.easy_rows=20", "problem.task.data.meta_size=40",
    "problem.task.data.test_size=20", "problem.task.data.unseen_size=60", "problem.batch=8",
    "problem.meta_batch=8", "problem.retrain_steps=30", "problem.reference_steps=4",
    "problem.refresh=4", "problem.task.models=2", "problem.task.hidden=8",
]  # fmt: skip
ARITHMETIC = [
    "problem.task.data.chains=40", "problem.task.data.meta_size=40",
    "problem.task.data.questions=4", "problem.task.data.candidates=8",
    "problem.task.data.held_out=20",
]  # fmt: skip
ROLLOUT = [
    "problem.runs=11", "problem.steps=128", "problem.phase=64", "problem.evaluation_episodes=4",
    "problem.model.steps=4", "problem.training_episodes=0", "problem.tests=[default]",
    "outer_steps=3",
]  # fmt: skip

REWARDS = [
    "problem.task.data.runs=2", "problem.task.data.pairs=64", "problem.task.data.test_pairs=32",
    "problem.task.data.prompts=16", "problem.task.data.steps=5",
    "problem.task.data.levels=[1.0e-4]", "problem.task.model.widths=[8]",
]  # fmt: skip

TRL_ROWS = [
    "problem.task.data.count=100", "problem.task.data.meta=40", "problem.task.data.held_out=10",
    "problem.task.model.source.num_hidden_layers=1", "problem.batch=24", "problem.meta_batch=24",
    "problem.reference_steps=4", "problem.inner_optimizer.lr=1.0e-2",
    "outer_lr=0.5", "inner_steps=2",
]  # fmt: skip


def process_files(folder: Path, count: int = 20) -> list[str]:
    """Write two domains of step labels and a file of solutions; return the overrides for them."""
    labelled = {
        "bigbench_mistake/words.jsonl": [
            {"input": f"sort {i}", "steps": ["one", "two"], "mistake_index": 1 if i % 2 else None}
            for i in range(count)
        ],
        "processbench/sums.json": [
            {
                "id": f"sums-{i}",
                "generator": "g",
                "problem": f"add {i}",
                "steps": ["first", "then", "last"],
                "label": i % 4 - 1,
            }
            for i in range(count)
        ],
    }
    for name, rows in labelled.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    solved = [
        {
            "question": f"add {i}",
            **{
                f"by {s}": {"solution": f"so\nA: {i + s}", "is_correct": s == i % 2} for s in (0, 1)
            },
        }
        for i in range(2 * count)
    ]
    path = folder / "solutions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in solved))
    return [f"problem.task.data.source={folder}", f"problem.task.data.solutions={path}"]


def verdicts(folder: Path, count: int = 40) -> list[str]:
    """Write chains that one word makes right or wrong; return the overrides that use them.

    Of the domains, the labels of one are true and those of two are reversed, so that a model
    becomes good only where the weights do.
    """
    words = ("sound", "flawed")
    chains = {
        domain: [
            Chain(f"question {i}", (f"step {words[i % 2]}", "done"), (label, label), domain=domain)
            for i in range(count)
            for label in [float((i % 2 == 0) == (domain == "told"))]
        ]
        for domain in ("told", "reversed", "turned")
    }
    chains["meta"] = [
        Chain(f"question {i}", (f"step {words[i % 2]}", "done"), outcome=i % 2 == 0)
        for i in range(count)
    ]
    write(folder / "meta.jsonl", chains.pop("meta"))
    write(folder / "train.jsonl", [chain for found in chains.values() for chain in found])
    return [
        "data@problem.task.data=process_reward/process_files",
        f"problem.task.data.train={folder}/train.jsonl",
        f"problem.task.data.meta={folder}/meta.jsonl",
        "model@problem.task.scorer=process_reward/prm_features",
        "problem.task.scorer.size=8", "problem.task.scorer.widths=[8]",
    ]  # fmt: skip


def preference_files(folder: Path, count: int = 16) -> list[str]:
    """Write a file of pairs, polite answers preferred; return the overrides that use it."""
    rows = [
        {
            "prompt": f"\n\nHuman: question {i}\n\nAssistant:",
            "chosen": f" thank you {i}",
            "rejected": f" go away {i % 3}",
        }
        for i in range(count)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return [
        f"problem.task.source.source={path}",
        "problem.task.training=0.5", "problem.task.backbone.hidden_size=8",
        "problem.task.backbone.intermediate_size=8", "problem.task.backbone.num_hidden_layers=1",
        "problem.batch=4", "problem.prompts=2",
    ]  # fmt: skip


def shrunk(problem: str, folder: Path) -> list[str]:
    """Return the overrides that make a problem small; `folder` takes the data it needs."""
    if problem == "reward_design/bank":
        return [
            "inner_steps=1", "problem.rewards.random=1", "problem.permutations=5",
            "problem.trainer.phase=16", "problem.trainer.inner_seeds=1",
            "problem.trainer.curve_episodes=1", "problem.trainer.evaluation_episodes=2",
            "problem.trainer.agent.widths=[8]", "problem.trainer.environment.time_limit=40",
        ]  # fmt: skip
    if problem == "template_evolution":
        return WORLD
    if problem == "template_evolution/judge_calibration":
        return ["problem.data.questions=20", "problem.labelled=20"]
    if problem == "meta_policy_optimization":
        return ["inner_steps=2", "problem.rollouts=3", "problem.policy.world.queries=2"]
    if problem == "meta_policy_optimization/text":
        return [
            "inner_steps=1", "problem.rollouts=3", "problem.policy.world.queries=2",
            "problem.policy.queries_per_update=2", "problem.policy.group_size=4",
            "problem.policy.teaching_steps=30", "problem.policy.evaluation=4",
            "problem.policy.max_tokens=16", "problem.policy.model.source.hidden_size=32",
        ]  # fmt: skip
    if problem == "metric_induction":
        return ["problem.data.trajectories=18"]
    if problem == "agent_programs":
        return ["problem.workers.questions=240", "problem.training=80", "problem.calls=4"]
    if problem.startswith("rollout_length"):
        return ROLLOUT
    if problem.startswith("reward_design"):
        return [
            "inner_steps=2", "problem.trainer.phase=16", "problem.trainer.inner_seeds=1",
            "problem.trainer.curve_episodes=1", "problem.trainer.evaluation_episodes=4",
            "problem.trainer.agent.widths=[8]", "problem.trainer.environment.time_limit=40",
            "problem.trainer.environment.power=0.003",  # some policies succeed by chance
        ]  # fmt: skip
    if problem == "domain_reweighting/text_world":
        return CURATION
    if problem.startswith("data_curation"):
        return TRL_ROWS
    if problem == "domain_reweighting":
        return [*ARITHMETIC, *REWEIGHTING]
    if problem == "reward_model/text":
        return preference_files(folder)
    if problem == "reward_model/hh_rlhf":  # without the files that it names
        return [
            *preference_files(folder), "problem.task.transfer=null",
            "problem.task.unlabelled=held_out",
        ]  # fmt: skip
    if problem.startswith("reward_model"):
        return REWARDS
    if problem == "stochastic_quadratic":
        return [
            "problem.inner_samples=96", "problem.outer_samples=32", "problem.inner_dim=8",
            "problem.outer_dim=3", "problem.batch=8", "problem.mu=0.5",
        ]  # fmt: skip
    if problem == "hyper_cleaning":
        return ["problem.train=100", "problem.clean=40", "problem.test=100", "problem.batch=50"]
    if problem == "few_shot_ranking":
        return [
            "problem.pools.queries=72", "problem.pools.documents=300", "problem.pools.pool=60",
            "problem.pools.shots=2", "problem.shots=[1,2]", "problem.scorer.widths=[8]",
            "problem.fine_tuning.rates=[0.1]", "problem.fine_tuning.steps=[0,1]", "tasks=16",
        ]  # fmt: skip
    if problem == "few_shot_ranking/text":
        return [
            "problem.scorer.source.num_hidden_layers=1", "problem.scorer.source.hidden_size=8",
            "problem.pools.size=36", "problem.documents=2", "problem.fine_tuning.rates=[0.1]",
            "problem.fine_tuning.steps=[0,1]", "inner_steps=1",
        ]  # fmt: skip
    if problem.startswith("few_shot"):
        return ["tasks=16", "outer_lr=0.03", "problem.widths=[16]", "problem.data.test_tasks=6"]
    if problem == "hyperparameter_optimization":
        return ["problem.refit_steps=20", "problem.noise_features=4"]
    if problem in {"tuned_digits", "scheduled_digits"}:
        return ["inner_steps=2", "problem.hidden=8"]
    return []
