from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaopt.cli import jobs
from metaopt.cli.composing import cell
from metaopt.engine.annotations import describe, fits
from metaopt.files import tensors, writing
from metaopt.files.reading import steps
from metaopt.problems.examples import Ridge
from metaopt.runs.errors import explain

Metaopt = Callable[..., Any]
UNSTABLE = ("outer_lr=1.0e+6", "problem.max_penalty=null")
TINY = ("problem=ridge", "debug=tiny", "figures=false")


def only(pattern: str) -> Path:
    (actual,) = Path().glob(pattern)
    return actual


def test_a_run_leaves_its_folder_and_says_where_it_is(metaopt: Metaopt) -> None:
    done = metaopt("problem=ridge", "debug=tiny")
    folder = only("runs/ridge/*")
    assert done.code == 0
    assert f"everything is in {folder}" in done.out
    assert f"Next: metaopt-report {folder}" in done.out
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "provenance.json", "metrics.jsonl", "checkpoints", "figures", "final.pt",
        "README.md", "outer.safetensors", "inner.safetensors",
        "timing.json", "result.json", "SHA256SUMS",
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    assert result["outer_steps"] == 3
    assert result["overrides"] == ["problem=ridge", "debug=tiny"]
    assert result["stopped"] is None
    assert result["budget"]["inner_steps"] == 15
    assert {"outer/loss", "eval/test_loss"} <= set(result["metrics"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["outer_step"] for line in lines] == [1, 2, 3]
    assert result["metrics"]["outer/loss"] == lines[-1]["outer/loss"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["engine"]["outer_steps"] == 3
    assert list((folder / "figures").glob("*.png"))


def test_a_printed_command_can_be_pasted_where_the_folder_has_a_space(metaopt: Metaopt) -> None:
    command = "metaopt-report 'runs/a b'"
    done = metaopt(*TINY, "outer_steps=1", "hydra.run.dir=runs/a b")
    assert f"Next: {command}\n" in done.out
    assert f"next     {command}" in metaopt("show", "runs/a b").out.replace("\t", "     ")


def test_the_command_line_wins_over_debug_and_problem(metaopt: Metaopt) -> None:
    assert metaopt(*TINY, "outer_steps=2", "estimator=implicit", "inner_steps=3").code == 0
    config = yaml.safe_load(only("runs/ridge/*/config.yaml").read_text())
    assert config["estimator"]["_target_"] == "metaopt.estimators.Implicit"
    assert (config["engine"]["outer_steps"], config["estimator"]["inner_steps"]) == (2, 3)


def test_a_limit_ends_the_run_and_is_named(metaopt: Metaopt) -> None:
    done = metaopt("problem=ridge", "figures=false", "limits={gradients: 20}")
    result = json.loads(only("runs/ridge/*/result.json").read_text())
    assert "the limit on gradients" in done.out
    assert result["stopped"] == {"by": "limit", "text": "the limit on gradients is reached"}
    assert 20 <= result["budget"]["gradients"] < 30
    assert "eval/test_loss" in result["metrics"]


def test_the_same_sweep_again_computes_nothing(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ("-m", *TINY, "estimator=unroll,implicit", "seed=0,1")
    first = metaopt(*sweep)
    assert (first.code, "4 cells: 4 computed" in first.out) == (0, True)
    before = {path: path.stat().st_mtime_ns for path in Path("results").rglob("*.*")}
    monkeypatch.setattr(jobs, "build", None)
    again = metaopt(*sweep)
    assert again.code == 0
    assert "4 of 4 cells were already finished; nothing computed." in again.out
    after = {path: path.stat().st_mtime_ns for path in Path("results").rglob("*.*")}
    assert {p: t for p, t in after.items() if before.get(p) != t}.keys() <= {
        Path("results/ridge/multirun.yaml")
    }


@pytest.mark.slow
def test_a_sweep_completes_what_is_missing(metaopt: Metaopt) -> None:
    metaopt("-m", *TINY, "seed=0,1")
    done = metaopt("-m", *TINY, "seed=0,1,2")
    assert "3 cells: 1 computed" in done.out
    assert "2 were already finished" in done.out


@pytest.mark.slow
def test_a_label_may_change_after_the_fact(metaopt: Metaopt) -> None:
    metaopt("-m", *TINY, "seed=0")
    done = metaopt("-m", *TINY, "seed=0", "label=ridge, by hand".replace(", ", " "))
    assert "1 of 1 cells were already finished" in done.out
    assert (
        yaml.safe_load(only("results/ridge/*/config.yaml").read_text())["label"] == "ridge by hand"
    )


def test_a_cell_of_another_config_is_refused_and_the_difference_named(metaopt: Metaopt) -> None:
    sweep = ("-m", *TINY, "seed=0", "hydra.sweep.subdir=cell")
    metaopt(*sweep, "inner_steps=9")
    folder = Path("results/ridge/cell")
    before = (folder / "result.json").read_bytes()
    done = metaopt(*sweep)
    assert done.code == 1
    assert "holds a run of another config" in done.err
    assert "estimator.inner_steps: 9 -> 5" in done.err
    assert (folder / "result.json").read_bytes() == before


@pytest.mark.slow
def test_an_extended_cell_is_refused_and_not_called_missing(metaopt: Metaopt) -> None:
    sweep = ("-m", *TINY, "seed=0,1", "early_stopping.metric=eval/test_loss")
    first = metaopt(*sweep)
    for seed in (0, 1):
        assert f"seed={seed}: early_stopping.patience=5 cannot end this run early" in first.err
    assert (
        metaopt(f"resume={next(Path('results/ridge').glob('*seed=0'))}", "outer_steps=4").code == 0
    )
    done = metaopt(*sweep)
    assert done.code == 1
    assert "2 cells: 0 computed" in done.out
    assert "1 were already finished, 1 failed." in done.out
    assert "outer_steps: 4 -> 3" in done.err
    assert "computes what is missing" not in done.out


def test_one_failing_cell_does_not_stop_the_others(metaopt: Metaopt) -> None:
    done = metaopt("-m", *TINY, "inner_steps=0,1")
    assert done.code == 1
    assert "2 cells: 1 computed" in done.out
    assert "1 failed" in done.out
    assert "inner_steps >= 1; got inner_steps=0" in done.err


def test_a_sweep_that_fails_everywhere_says_why_once(metaopt: Metaopt) -> None:
    done = metaopt("-m", *TINY, "inner_steps=0", "seed=0,1,2")
    assert done.code == 1
    assert done.err == "metaopt: Unroll needs inner_steps >= 1; got inner_steps=0.\n"
    lines = done.out.splitlines()
    assert [line[:13] for line in lines[:3]] == [f"{i + 1}/3  seed={i}  " for i in range(3)]
    assert all(line[13:].startswith("failed: Unroll needs inner_steps") for line in lines[:3])
    commands = [line.strip() for line in lines if line.startswith("    metaopt ")]
    assert [command.split()[-1] for command in commands] == ["seed=0", "seed=1", "seed=2"]
    assert "Correct the above. The same command computes what is missing." in done.out
    assert "metaopt-report" not in done.out


def test_an_experiment_is_a_sweep_without_a_flag(metaopt: Metaopt) -> None:
    done = metaopt("experiment=ridge/estimators", "debug=tiny", "figures=false", "seed=0")
    assert "4 cells: 4 computed" in done.out
    assert len(list(Path("results/ridge/estimators").glob("*/result.json"))) == 4


@pytest.mark.slow
def test_cells_run_in_two_processes(metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    monkeypatch.setattr(jobs, "build", None)  # here, but not in the processes of the cells
    done = metaopt("-m", *TINY, "seed=0,1", *launcher)
    get_reusable_executor().shutdown(wait=True)
    assert done.code == 0, done.err
    assert "2 cells: 2 computed" in done.out


def test_long_and_odd_names_of_cells_become_folders() -> None:
    assert cell("estimator=unroll,seed=0") == "estimator=unroll,seed=0"
    odd = cell("data.path=/a/b,limits={x:1}")
    assert "/" not in odd
    assert odd != cell("data.path=/a/b,limits={x:2}")
    assert len(cell("a=1," * 100)) < 120


MISTAKES = {
    "misspelt key": (["outer_step=3"], ["no key 'outer_step'", "Did you mean outer_steps?"]),
    "misspelt nested key": (["estimator.iner_steps=3"], ["Did you mean estimator.inner_steps?"]),
    "misspelt group": (["estimater=unroll"], ["Did you mean estimator?"]),
    "unknown option": (["estimator=unrol"], ["no estimator=unrol", "unroll", "--help estimator"]),
    "option of a family": (["method=uniform"], ["no method=uniform", "domain_reweighting/uniform"]),
    "key that lives elsewhere": (["lr=0.1"], ["no key 'lr'", "problem.inner_optimizer.lr"]),
    "nested key elsewhere": (["optimizer.features=3"], ["It is problem.features"]),
    "group that is chosen by node": (["data=cifar10"], ["problem=ridge takes no", "group data"]),
    "group in the wrong place": (
        ["problem=domain_reweighting", "data@problem.data=meta_pseudo_labels/digits"],
        ["no place 'data@problem.data'", "data@problem.task.data=OPTION"],
    ),
    "group that is there already": (["+estimator=score"], ["estimator is", "without the +"]),
    "key that is there already": (["+seed=1"], ["'seed' is there already", "without the +"]),
    "unknown experiment": (["experiment=ridge/x"], ["no experiment=ridge/x", "ridge/estimators"]),
    "text for a number": (["outer_steps=abc"], ["outer_steps must be an integer; got 'abc'"]),
    "fraction": (["inner_steps=1.5"], ["inner_steps must be an integer; got 1.5"]),
    "nested type": (["estimator.inner_steps=x"], ["estimator.inner_steps must be an integer"]),
    "literal": (["estimator.segments=x"], ["an integer or auto; got 'x'"]),
    "runner's type": (["log_every=often"], ["log_every must be an integer; got 'often'"]),
    "node": (["problem.inner_optimizer=3"], ["problem.inner_optimizer must be", "got 3"]),
    "added argument": (["+problem.feature=2"], ["no argument 'feature'", "Did you mean features?"]),
    "module of a target": (
        ["problem._target_=foo.Bar"],
        ["nothing to call at 'foo.Bar'", "no module 'foo'", "--config-dir"],
    ),
    "name of a target": (
        ["problem._target_=metaopt.problems.examples.Rigde"],
        ["has no 'Rigde'", "Did you mean Ridge"],
    ),
    "illegal value": (["inner_steps=0"], ["Unroll needs inner_steps >= 1; got inner_steps=0"]),
    "illegal interval": (["eval_every=0"], ["eval_every >= 1; got eval_every=0"]),
    "unknown unit": (["limits={steps: 3}"], ["the unit 'steps'", "gradients"]),
    "device": (["device=cuda:99"], ["device=cuda:99: nothing of this run reads it"]),
    "text for a rate": (["outer_lr=abc"], ["outer_lr must be a finite number; got 'abc'"]),
    "option alone": (["reward_model"], ["'reward_model' is not", "mean problem=reward_model?"]),
    "misspelt verb": (["reprot"], ["'reprot' is not a command", "Did you mean report?"]),
    "value that must be given": (
        [
            "problem=domain_reweighting",
            "data@problem.task.data=process_reward/process_files",
        ],
        ["problem.task.data.train must be given: add problem.task.data.train=VALUE."],
    ),
    "method of another family": (
        ["problem=domain_reweighting", "method=reward_model/flip"],
        ["no argument 'variant'", "reward_model/flip is one of problem=reward_model: drop"],
    ),
    "threads": (["threads=0"], ["threads must be >= 1 and <= 1024; got 0"]),
    "unfinished text": (["outer_steps=[1"], ["no viable alternative at input '[1'"]),
    "no value": (["outer_steps"], ["outer_steps"]),
    "folder": (["hydra.run.dir=/proc/nowhere"], ["folder cannot be made", "hydra.run.dir="]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_message_and_no_traceback(metaopt: Metaopt, mistake: str) -> None:
    arguments, expected = MISTAKES[mistake]
    done = metaopt(*TINY, *arguments)
    assert done.code == 1
    for part in expected:
        assert part in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 6
    assert not list(Path().rglob("result.json"))
    assert not list(Path().rglob("*.part"))


def test_a_missing_problem_is_named_with_its_options(metaopt: Metaopt) -> None:
    done = metaopt("estimator=unroll")
    assert done.code == 1
    assert "problem=" in done.err
    assert "ridge" in done.err


def test_a_folder_that_is_no_run_cannot_be_resumed(metaopt: Metaopt) -> None:
    done = metaopt("resume=nowhere")
    assert done.code == 1
    assert "nowhere/config.yaml is missing" in done.err


def test_resume_takes_no_change_but_more_steps(metaopt: Metaopt) -> None:
    metaopt(*TINY)
    done = metaopt(f"resume={only('runs/ridge/*')}", "outer_steps=9", "seed=9")
    assert done.code == 1
    assert "drop seed=9" in done.err


def test_a_missing_file_is_named(metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: Ridge, *_: object, **__: object) -> None:
        Path("data/train.parquet").read_bytes()

    monkeypatch.setattr(Ridge, "__init__", absent)
    done = metaopt(*TINY)
    assert done.code == 1
    assert "A file is missing: data/train.parquet" in done.err
    assert "Traceback" not in done.err


def test_advice_about_a_missing_file_stands_alone(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(self: Ridge, *_: object, **__: object) -> None:
        raise FileNotFoundError("There is no data. Download it.")

    monkeypatch.setattr(Ridge, "__init__", absent)
    assert metaopt(*TINY).err == "metaopt: There is no data. Download it.\n"
    assert not list(Path().rglob("error.log"))
    assert explain(FileNotFoundError("There is no data.")) == "There is no data."


def test_a_loss_that_is_not_finite_names_step_value_and_checkpoint(metaopt: Metaopt) -> None:
    done = metaopt(*TINY, *UNSTABLE, "checkpoint_every=1", "outer_steps=20")
    folder = only("runs/ridge/*")
    saved = steps(folder / "checkpoints")
    assert done.code == 1
    assert f"outer loss is nan at outer step {saved[-1][0] + 1}" in done.err
    assert str(saved[-1][1]) in done.err
    assert f"metaopt resume={folder}" in done.err
    assert "Traceback" not in done.err
    assert "NonFiniteError" in (folder / "error.log").read_text()
    assert not (folder / "result.json").exists()


def test_debug_prints_the_traceback(metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAOPT_DEBUG", "1")
    assert "Traceback" in metaopt(*TINY, *UNSTABLE, "outer_steps=20").err


def fail_with(monkeypatch: pytest.MonkeyPatch, number: int, name: str) -> None:
    """Make every file whose name starts with `name` impossible to write."""
    replacing = writing.replacing

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name.startswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return replacing(path, *arguments, **options)

    for module in (writing, tensors):
        monkeypatch.setattr(module, "replacing", refuse)


@pytest.mark.parametrize("name", ["step_", "result", "config", "provenance", "timing"])
def test_a_full_disk_leaves_no_result_and_the_run_can_continue(metaopt: Metaopt, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail_with(patch, errno.ENOSPC, name)
        done = metaopt(*TINY)
    assert done.code == 1
    assert "disk is full" in done.err
    assert "Traceback" not in done.err
    assert not list(Path().rglob("result.json"))
    if name == "provenance":  # which comes first
        assert not list(Path().iterdir())
    else:
        folder = only("runs/ridge/*")
        assert f"metaopt resume={folder}" in done.err
        assert metaopt(f"resume={folder}").code == 0
        assert (folder / "result.json").exists()
        assert not (folder / "error.log").exists()


def test_a_folder_that_must_not_be_written_is_named(
    metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, errno.EROFS, "config")
    done = metaopt(*TINY)
    assert done.code == 1
    assert "Not allowed to write" in done.err
    assert "hydra.run.dir=" in done.err


def test_a_real_limit_on_file_sizes_gives_a_message(metaopt: Metaopt, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        done = metaopt(*TINY, "problem.features=2000")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.code == 1
    assert "disk is full, or a quota is reached" in done.err
    assert "Traceback" not in done.err
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "README.md", "SHA256SUMS", "config.yaml", "provenance.json", "metrics.jsonl", "error.log",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "hint", "fitting"),
    [
        (1, int, True), (True, int, False), (1.0, int, False), ("1", int, False),
        (1, float, True), (1.5, float, True), (True, float, False), ("1.5", float, False),
        (None, int | None, True), (None, int, False), ("a", str | None, True),
        ([1, 2], list[int], True), ([1, "a"], list[int], False), ("ab", list[str], False),
        ({"a": 1}, dict[str, int], True), ([1], dict[str, int], False),
        ("x", Path, True), (3, Path, False), (1, bool, False), (True, bool, True),
        ({"_target_": "a.B"}, int, True), (3, Ridge, False), (3, Any, True),
        (3, Callable[[int], int], False),
    ],
)  # fmt: skip
def test_values_against_annotations(value: object, hint: object, fitting: bool) -> None:
    assert fits(value, hint) is fitting
    assert describe(hint)
