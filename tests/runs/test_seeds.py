"""Runs of several seeds: what they write, resume and report is that of runs of one seed each."""

import json
import re
import signal

import pytest
import torch
from processes import Command
from safetensors.torch import load_file

import metaopt
from metaopt import ConfigError, Descent, Implicit, Unroll
from metaopt.files.reading import read_records
from metaopt.problems.examples import Ridge
from metaopt.report.collect import collect
from metaopt.report.figures import read_curves
from metaopt.testing.trees import identical

SEEDS = (4, 5, 6)


def ridges(*seeds):
    return [Ridge(features=5, rows=10, seed=seed) for seed in seeds]


def run(folder=None, estimator=None, steps=6, **settings):
    return metaopt.run(
        ridges(*SEEDS), estimator or Unroll(3), Descent("adam", lr=0.1), steps, seed=4, seeds=3,
        folder=folder, progress=False, figures=False, eval_every=2, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def singles():
    return {
        seed: metaopt.run(
            *ridges(seed), Unroll(3), Descent("adam", lr=0.1), 6, seed=seed, progress=False,
            eval_every=2,
        )
        for seed in SEEDS
    }  # fmt: skip


def test_metrics_are_those_of_each_seed_and_their_means(tmp_path, singles):
    result = run(tmp_path / "run")
    for name, values in result.replicates.items():
        wanted = [singles[seed].metrics[name] for seed in SEEDS]
        assert values == pytest.approx(wanted, rel=1e-10)
        assert result.metrics[name] == pytest.approx(sum(wanted) / 3)
    assert {"outer/loss", "inner/loss", "outer/grad_norm", "eval/test_loss"} <= {*result.replicates}
    for i, seed in enumerate(SEEDS):
        for record, alone in zip(result.history, singles[seed].history, strict=True):
            for name, values in record["replicates"].items():
                assert values[i] == pytest.approx(alone[name], rel=1e-10)
                assert record[name] == pytest.approx(sum(values) / 3)
        assert result.budget == singles[seed].budget
        phi = load_file(tmp_path / "run/outer.safetensors")["log_penalty"][i]
        torch.testing.assert_close(phi, singles[seed].outer["log_penalty"], rtol=1e-10, atol=0)
    written = json.loads((tmp_path / "run/result.json").read_text())
    assert written["seeds"] == list(SEEDS)
    loaded = metaopt.load(tmp_path / "run")
    assert loaded.replicates == result.replicates
    assert loaded.metrics == result.metrics
    assert [problem.seed for problem in loaded.problem] == list(SEEDS)


@pytest.mark.parametrize("estimator", [Unroll(3), Implicit()])
def test_a_run_that_is_extended_is_that_of_one_piece(tmp_path, estimator):
    whole = run(tmp_path / "whole", estimator, checkpoint_every=2)
    run(tmp_path / "parts", estimator, steps=4, checkpoint_every=2)
    resumed = metaopt.resume(tmp_path / "parts", ridges(*SEEDS), outer_steps=6, progress=False)
    assert identical(resumed.outer, whole.outer)
    assert resumed.replicates == whole.replicates
    again = metaopt.load(tmp_path / "parts")
    assert identical(again.inner, whole.inner)
    with pytest.raises(ConfigError, match="another problem"):
        metaopt.resume(tmp_path / "parts", ridges(0, 1, 2), outer_steps=8, progress=False)


def test_an_unfinished_run_is_loaded_with_the_values_of_each_seed(tmp_path):
    run(tmp_path, steps=5, checkpoint_every=2)
    for name in ("result.json", "final.pt", "SHA256SUMS"):
        (tmp_path / name).unlink()
    loaded = metaopt.load(tmp_path)
    assert not loaded.finished
    assert len(loaded.replicates["outer/loss"]) == len(loaded.replicates["eval/test_loss"]) == 3
    assert loaded.metrics["outer/loss"] == pytest.approx(sum(loaded.replicates["outer/loss"]) / 3)


def test_without_a_folder_the_history_holds_each_seed():
    history = run().history
    assert all(len(record["replicates"]["outer/loss"]) == 3 for record in history)


def test_a_list_of_problems_needs_seeds():
    with pytest.raises(TypeError, match="seeds is None"):
        metaopt.run(ridges(0, 1), Unroll(), Descent(), 1, progress=False)
    with pytest.raises(ValueError, match="2 problems and 3 seeds"):
        metaopt.run(ridges(0, 1), Unroll(), Descent(), 1, seeds=3, progress=False)


COMMON = ("problem=ridge", "problem.features=5", "figures=false", "outer_steps=4")


@pytest.fixture
def command(request):
    """The command `metaopt`, whose fixture has the name of the package."""
    return request.getfixturevalue("metaopt")


@pytest.mark.slow
def test_a_report_counts_the_seeds_of_the_command(command, tmp_path):
    assert command(*COMMON, "seed=2", "seeds=3", "hydra.run.dir=together").code == 0
    assert command("-m", *COMMON, "seed=2,3,4", "hydra.sweep.dir=alone", "name=alone").code == 0
    together, alone = collect(tmp_path / "together"), collect(tmp_path / "alone")
    cells = {cell.seed: cell for cell in alone.cells}
    assert {cell.seed for cell in together.cells} == {2, 3, 4} == {*cells}
    for cell in together.cells:
        assert cell.cost == cells[cell.seed].cost
        for name, value in cell.metrics.items():
            assert value == pytest.approx(cells[cell.seed].metrics[name], rel=1e-10)
        log = tmp_path / "together/metrics.jsonl"
        curve = read_curves(log, replicate=cell.replicate)["outer/loss"].value
        wanted = read_curves(cells[cell.seed].folder / "metrics.jsonl")["outer/loss"].value
        assert curve == pytest.approx(wanted, rel=1e-10)
    assert "seeds 2..4" in command("ls", "together").out
    assert re.search(r"^seeds\t2\.\.4$", command("show", "together").out, flags=re.M)


@pytest.mark.slow
def test_a_killed_run_of_several_seeds_continues_to_the_bit(tmp_path):
    common = *COMMON[:-1], "outer_steps=40", "seeds=3", "estimator=implicit", "checkpoint_every=7"
    assert Command(tmp_path, *common, "hydra.run.dir=whole").end() == 0
    command = Command(tmp_path, *common, "hydra.run.dir=killed", signal_at=(13, signal.SIGKILL))
    assert command.end() == -signal.SIGKILL
    assert Command(tmp_path, "resume=killed").end() == 0
    whole, killed = ((tmp_path / n / "result.json").read_bytes() for n in ("whole", "killed"))
    assert whole == killed
    first, second = (read_records(tmp_path / n / "metrics.jsonl") for n in ("whole", "killed"))
    for a, b in zip(first, second, strict=True):
        del a["time/elapsed_s"], b["time/elapsed_s"]
        assert a == b


REFUSED = {
    "problem=knapsack": "Knapsack steps and evaluates itself",
    "problem=ridge estimator.tasks=2": "Unroll(tasks=2) starts each task from",
    "problem=ridge engine=betty estimator=implicit_identity": "BettyEngine trains one seed",
    "problem=ridge outer_lr=1.0e-${seed}": "outer_lr depends on the seed",
    "problem=ridge seeds=0": "seeds must be how many to train together",
    "problem=ridge seeds=1.5": "a list of different whole numbers; got 1.5",
    "problem=ridge seed=5 seeds=[1,2]": "seeds=[1, 2] lists the seeds, so that seed=5 has no",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_cannot_be_stacked_is_refused_before_a_file_is_written(command, tmp_path, overrides):
    done = command("seeds=2", *overrides.split())
    assert done.code
    assert REFUSED[overrides] in done.err
    assert not list(tmp_path.iterdir())


def test_a_check_looks_at_one_seed(command):
    done = command("check", "problem=ridge", "seeds=3")
    assert done.code
    assert "metaopt-check looks at one seed, seed=0; drop seeds=3." in done.err


@pytest.mark.parametrize(("problem", "warned"), [(ridges(4)[0], True), (ridges(4, 5), False)])
def test_seeds_on_which_nothing_depends_are_said_to_be_equal(problem, warned, capsys):
    metaopt.run(problem, Unroll(2), Descent("adam", lr=0.1), 2, seeds=2, progress=False)
    said = capsys.readouterr().err
    assert said.count("all seeds have the same results") == warned
    assert ("put `seed: ${seed}` into the YAML" in said) == warned
