"""Sweeps of Weights & Biases: valid by the schema of wandb's own package, and their commands run.

`sweeps/schema.json` is that of the package sweeps 0.3.0, which cannot be installed here since it
needs numpy 1; where there is a network, it is installed elsewhere and draws the runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import wandb_log
import yaml
from hydra import compose
from omegaconf import OmegaConf
from small import shrunk

from metaopt.cli import folders
from metaopt.cli.loading import composing
from metaopt.cli.schema import check
from metaopt.report.settings import Settings

ROOT = folders.shipped() / "sweep"
SWEEPS = sorted(folders.groups()["sweep"])
SCHEMA = json.loads((Path(__file__).parent / "sweeps" / "schema.json").read_text())
REPOSITORY = ROOT.parents[1]
FAMILIES = {path.parent.name for path in REPOSITORY.glob("metaopt/problems/*/__init__.py")}
FAMILIES -= {"examples", "text"}  # single problems, and what families share

TINY = ("debug=tiny", "figures=false")


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / f"{name}.yaml").read_text()))


def violations(sweep: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(sweep)]


def command(sweep: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Return what an agent of wandb runs, rendered by wandb's own function."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    arguments = {key: {"value": value} for key, value in values.items()}
    macros = utils.create_sweep_command_args({"args": arguments}) | {"program": [sweep["program"]]}
    words: list[str] = []
    for word in sweep["command"]:
        words += macros[word[2:-1]] if word.startswith("${") else [word]
    return words


def ends(parameter: Mapping[str, Any]) -> list[Any]:
    """Return the first and the last value of a parameter, or all of a list."""
    return (
        list(parameter["values"]) if "values" in parameter else [parameter["min"], parameter["max"]]
    )


def corners(sweep: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield values in which each value of each parameter is once, the others at their first."""
    first = {key: ends(parameter)[0] for key, parameter in sweep["parameters"].items()}
    yield first
    for key, parameter in sweep["parameters"].items():
        yield from ({**first, key: value} for value in ends(parameter)[1:])


def small(words: list[str], folder: Path) -> list[str]:
    (problem,) = (w.partition("=")[2] for w in words if w.startswith("problem="))
    searched = {word.partition("=")[0] for word in words}
    return [*TINY, *(w for w in shrunk(problem, folder) if w.partition("=")[0] not in searched)]


def test_every_family_has_a_sweep() -> None:
    assert FAMILIES - {*SWEEPS} == set()


def test_the_page_lists_every_sweep_with_its_metric() -> None:
    page = (REPOSITORY / "docs" / "wandb.md").read_text()
    listed = re.findall(r"^\| `(\w+)\.yaml` \| `(\S+)` \|", page, re.MULTILINE)
    assert sorted(listed) == [(name, read(name)["metric"]["name"]) for name in SWEEPS]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_valid_by_wandbs_schema(name: str) -> None:
    sweep = read(name)
    assert violations(sweep) == []
    assert sweep["method"] in ("grid", "random", "bayes")
    for key, parameter in sweep["parameters"].items():
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key)
        low, *_, high = ends(parameter)
        assert "values" in parameter or low < high  # which a schema cannot say
        # wandb writes them as Python does, and hydra would take None for a text.
        assert not any(value is None for value in ends(parameter))
    lower = Settings().lower(sweep["metric"]["name"])
    assert sweep["metric"]["goal"] == ("minimize" if lower else "maximize")


def test_the_schema_refuses_what_is_wrong() -> None:
    sweep = read("ridge")
    for wrong in (
        {"method": "anneal"},
        {"metric": {"name": "eval/test_loss", "goal": "min"}},
        {"parameters": {"outer lr": {"values": [1]}}},
        {"parameters": {"outer_lr": {"distribution": "log_uniform_values", "min": 1.0}}},
        {"command": "metaopt"},
    ):
        assert violations({**sweep, **wrong}), wrong


@pytest.mark.parametrize("name", SWEEPS)
def test_the_command_of_a_sweep_is_a_block_of_words(name: str) -> None:
    """wandb's agents split no words, and some of its readers take no list in brackets."""
    text = (ROOT / f"{name}.yaml").read_text()
    lines = text[text.index("\ncommand:\n") + 1 :].splitlines()[1:]
    assert all(re.match(r"  - \S+($| +#)", line) for line in lines)
    words = read(name)["command"]
    assert len(words) == len(lines)
    assert (words[0], words[-1]) == ("${program}", "${args_no_hyphens}")
    assert "tracker=wandb" in words


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_key_and_value_of_a_sweep_composes(name: str) -> None:
    sweep = read(name)
    with composing():
        for values in corners(sweep):
            config = compose("train", command(sweep, values)[1:])
            plain: Any = OmegaConf.to_container(config, resolve=True)
            check(plain)
            for key, value in values.items():
                if key not in folders.groups():
                    assert OmegaConf.select(config, key) == value


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_the_command_of_a_sweep_runs_and_logs_its_metric(
    metaopt: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    sweep = read(name)
    last = {key: ends(parameter)[-1] for key, parameter in sweep["parameters"].items()}
    words = command(sweep, last)[1:]
    done = metaopt(*words, "tracker.mode=offline", "hydra.run.dir=run", *small(words, tmp_path))
    assert done.code == 0, done.err
    assert not re.search("(Wandb|tracker) failed", done.err), done.err
    assert_logged(Path("run"), sweep["metric"]["name"])


def assert_logged(folder: Path, metric: str) -> None:
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = wandb_log.history(path)
    assert (rows[-1]["outer_step"], metric in rows[-1]) == (3, True)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert rows[-1][metric] == last[metric]
    # A sweep chooses by the summary, which is measured after what a problem does at its end.
    result = json.loads((folder / "result.json").read_text())
    assert wandb_log.summary(path)[metric] == result["metrics"][metric]


SAMPLER = """
import json, sys
import sweeps
from sweeps.config import SweepConfig, schema_violations_from_proposed_config as violations
given = json.load(sys.stdin)
if given["runs"] is None:
    from sweeps.config.schema import sweep_config_jsonschema as schema
    print(json.dumps({"schema": schema, "violations": violations(given["sweep"])}))
else:
    runs = [sweeps.SweepRun(**run) for run in given["runs"]]
    run = sweeps.next_run(SweepConfig(given["sweep"]), runs)
    values = {k: v["value"] for k, v in run.config.items()}
    print(json.dumps(values, default=lambda number: number.item()))
"""


@pytest.fixture(scope="session")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The package sweeps, in an environment of its own."""
    folder = tmp_path_factory.mktemp("sweeps")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run([*pip, "sweeps==0.3.0"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package sweeps cannot be installed: {done.stderr.strip()[-300:]}")

    def ask(sweep: Any, runs: Any) -> Any:
        asked = json.dumps({"sweep": sweep, "runs": runs})
        arguments = [str(python), "-W", "ignore", "-c", SAMPLER]
        answer = subprocess.run(arguments, input=asked, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    return ask


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_that_wandb_samples_runs(
    sampler: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    """Three runs, each drawn after the results of those before, as an agent starts them."""
    sweep = read(name)
    assert sampler(sweep, None) == {"schema": SCHEMA, "violations": []}
    runs: list[dict[str, Any]] = []
    for number in range(3):
        values = sampler(sweep, runs)
        assert values.keys() == sweep["parameters"].keys()
        path = started(sweep, values, tmp_path / f"run{number}")
        assert_logged(path.parents[2], sweep["metric"]["name"])
        run = wandb_log.run(path)
        assert (run.run_id, run.project) == (f"run{number}", "of-the-sweep")
        config = wandb_log.config(path)
        assert {key: config[key] for key in values} == values
        runs.append({
            "name": run.run_id, "state": "finished",
            "config": {k: {"value": v} for k, v in values.items()},
            "summaryMetrics": wandb_log.summary(path), "history": wandb_log.history(path),
        })  # fmt: skip
    assert len({json.dumps(run["config"]) for run in runs}) > 1


def started(sweep: Mapping[str, Any], values: Mapping[str, Any], folder: Path) -> Path:
    """Run a command as an agent does, in a folder; return the file of the W&B run."""
    folder.mkdir()
    parameters = {"wandb_version": 1, **{k: {"value": v} for k, v in values.items()}}
    (folder / "parameters.yaml").write_text(yaml.safe_dump(parameters))
    environment = {
        **os.environ, "WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": folder.name,
        "WANDB_PROJECT": "of-the-sweep", "WANDB_SWEEP_PARAM_PATH": "parameters.yaml",
        "WANDB_MODE": "offline",
    }  # fmt: skip
    words = [sys.executable, "-m", *command(sweep, values)]
    words += ["hydra.run.dir=run", *small(words, folder)]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.search("(Wandb|tracker) failed", done.stderr), done.stderr
    (path,) = (folder / "run").glob("wandb/offline-run-*/*.wandb")
    return path
