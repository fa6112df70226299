"""The front door in Python: run, load, resume, and the public names."""

import functools
import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import metaopt
from metaopt import ConfigError, Descent, GradientProblem, Problem, Schedule, Score, Unroll
from metaopt.optimizers import Constant
from metaopt.problems.examples import Ridge
from metaopt.testing.trees import identical


@pytest.fixture
def command(request):
    """The command `metaopt`, whose fixture has the name of the package."""
    return request.getfixturevalue("metaopt")


def run(steps, folder=None, **settings):
    return metaopt.run(
        Ridge(seed=3), Unroll(inner_steps=2), Descent("adam", lr=0.1), steps, seed=5,
        folder=folder, progress=False, figures=False, **settings,
    )  # fmt: skip


class Walk(Problem):
    """F = |outer - count|."""

    def __init__(self, size=1):
        self.size = size

    def init_outer(self, generator):
        return 1.0

    def init_inner(self, outer, inner, key):
        return inner or {"count": 0}

    def inner_step(self, outer, inner, key):
        return {"count": inner["count"] + self.size}

    def evaluate(self, outer, inner, key):
        return metaopt.Feedback(abs(outer - inner["count"]))


def walk(folder, steps=4, **settings):
    return metaopt.run(
        Walk(), Score(1), Schedule(Constant(1.0)), steps, folder=folder, progress=False, **settings
    )


def test_public_names_can_be_imported_and_are_listed():
    assert 40 <= len(metaopt.__all__) <= 60
    assert len(set(metaopt.__all__)) == len(metaopt.__all__)
    assert dir(metaopt) == sorted([*metaopt.__all__, "__version__"])
    for name in metaopt.__all__:
        assert callable(getattr(metaopt, name))
    with pytest.raises(AttributeError, match="no attribute 'Unrol'"):
        metaopt.Unrol  # noqa: B018


def test_import_alone_does_not_import_torch():
    code = "import sys, metaopt; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(20)
    assert not list(tmp_path.iterdir())
    assert [record["outer_step"] for record in result.history] == list(range(1, 21))
    assert result.metrics["eval/test_loss"] == result.history[-1]["eval/test_loss"]
    assert set(result.outer) == {"log_penalty"}
    assert result.inner.params
    assert isinstance(result.problem, Ridge)
    assert result.history.to_pandas().loc[20, "outer/loss"] == result.metrics["outer/loss"]


def test_a_problem_whose_seeds_split_one_data_set_says_so_in_its_result(tmp_path):
    class Resplit(Ridge):
        resplit = 0.5

    for kind, expected in ((Resplit, 0.5), (Ridge, None)):
        folder = tmp_path / kind.__name__
        roles = Unroll(inner_steps=2), Descent("adam", lr=0.1)
        metaopt.run(kind(), *roles, 2, folder=folder, progress=False, figures=False)
        assert json.loads((folder / "result.json").read_text()).get("resplit") == expected


def test_a_folder_gives_the_same_result_back(tmp_path):
    result = run(20, tmp_path / "run")
    alone = run(20)
    again = metaopt.load(tmp_path / "run")
    for other in (alone, again):
        assert identical(other.outer, result.outer)
        assert identical(other.inner, result.inner)
        assert other.metrics == result.metrics
        assert other.budget == result.budget
    assert again.history == result.history
    assert again.finished
    assert again.config == json.loads(json.dumps(result.config))
    assert torch.equal(again.problem.train[0], Ridge(seed=3).train[0])
    assert metaopt.resume(tmp_path / "run", outer_steps=21, progress=False).outer_steps == 21


def test_what_was_learned_is_there_for_other_programs(tmp_path):
    result = run(5, tmp_path / "run")
    assert identical(load_file(tmp_path / "run" / "outer.safetensors"), result.outer)
    inner = load_file(tmp_path / "run" / "inner.safetensors")
    assert identical(inner, result.inner.params | result.inner.buffers)
    walk(tmp_path / "walk")
    assert json.loads((tmp_path / "walk" / "outer.json").read_text()) == 1.0


def test_a_run_is_extended_to_the_bit(tmp_path):
    whole = run(40, tmp_path / "whole")
    run(15, tmp_path / "part")
    longer = metaopt.resume(tmp_path / "part", Ridge(seed=3), outer_steps=40, progress=False)
    assert identical(longer.outer, whole.outer)
    assert identical(longer.inner, whole.inner)
    assert longer.metrics == whole.metrics
    results = [(tmp_path / name / "result.json").read_text() for name in ("whole", "part")]
    assert json.loads(results[0])["metrics"] == json.loads(results[1])["metrics"]
    assert metaopt.load(tmp_path / "part").config["outer_steps"] == 40


class Stopped(Exception):
    pass


class Fragile(Ridge):
    """Fails once, in the middle of the run."""

    fails = True

    def observe(self, outer, inner, feedback):
        if self.fails and float(feedback.value) < 10 and inner.step > 14:
            raise Stopped
        return super().observe(outer, inner, feedback)


def test_a_run_that_failed_is_loaded_and_continued(tmp_path):
    parts = Unroll(inner_steps=2), Descent("adam", lr=0.1)
    settings = {"progress": False, "figures": False, "checkpoint_every": 3}
    with pytest.raises(Stopped):
        metaopt.run(Fragile(), *parts, 12, folder=tmp_path / "run", **settings)
    killed = metaopt.load(tmp_path / "run")
    assert (killed.finished, killed.outer_steps) == (False, 6)
    assert killed.history[-1]["outer_step"] == 6
    healed = Fragile()
    healed.fails = False
    result = metaopt.resume(tmp_path / "run", healed, progress=False)
    parts = Unroll(inner_steps=2), Descent("adam", lr=0.1)
    whole = metaopt.run(Ridge(), *parts, 12, **settings)
    assert identical(result.outer, whole.outer)
    assert result.metrics == whole.metrics


def test_the_problem_of_a_python_run_must_be_passed(tmp_path):
    walk(tmp_path / "run")
    readme = (tmp_path / "run" / "README.md").read_text()
    assert f'metaopt.resume("{tmp_path / "run"}", problem=<' in readme
    assert len([line for line in readme.splitlines() if line]) == 3
    with pytest.raises(ConfigError, match=r"pass the problem .*problem=Walk\(\.\.\.\)"):
        metaopt.resume(tmp_path / "run", outer_steps=6)
    with pytest.raises(ConfigError, match=r"another problem:\n  problem.size: 1 -> 2"):
        metaopt.resume(tmp_path / "run", Walk(2), outer_steps=6)
    assert metaopt.resume(tmp_path / "run", Walk(), outer_steps=6, progress=False).inner == {
        "count": 6
    }
    with pytest.raises(ValueError, match="outer_steps=5 is below the 6"):
        metaopt.resume(tmp_path / "run", Walk(), outer_steps=5)


def test_a_part_that_the_folder_cannot_make_must_be_passed(tmp_path):
    algorithm = functools.partial(lambda groups, lr: torch.optim.SGD(groups, lr=lr), lr=0.1)
    metaopt.run(Ridge(), Unroll(2), Descent(algorithm), 2, folder=tmp_path, progress=False)
    with pytest.raises(ConfigError, match="pass optimizer=<the object it was started with>"):
        metaopt.resume(tmp_path, Ridge(), outer_steps=3)
    result = metaopt.resume(
        tmp_path, Ridge(), outer_steps=3, optimizer=Descent(algorithm), progress=False
    )
    assert result.outer_steps == 3


def test_a_folder_that_holds_a_run_is_not_taken(tmp_path):
    walk(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"metaopt\.resume"):
        walk(tmp_path / "run")
    with pytest.raises(ConfigError, match="not a run's folder"):
        metaopt.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="tracker needs a folder"):
        walk(None, tracker=print)


@pytest.mark.slow
def test_a_run_of_the_command_is_loaded_and_extended(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for name, steps in (("short", 5), ("long", 9)):
        assert command("problem=ridge", f"outer_steps={steps}", f"hydra.run.dir={name}").code == 0
    loaded = metaopt.load("short")
    assert isinstance(loaded.problem, Ridge)
    longer, long = metaopt.resume("short", outer_steps=9, progress=False), metaopt.load("long")
    assert identical(longer.outer, long.outer)
    assert longer.metrics == long.metrics
    assert metaopt.resume("short").metrics == long.metrics


def test_an_edited_config_is_not_continued(tmp_path):
    run(3, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("seed: 5", "seed: 6"))
    with pytest.raises(ConfigError, match=r"was edited since .*\n  seed: 5 -> 6\n"):
        metaopt.resume(tmp_path / "run", Ridge(seed=3), outer_steps=5)
    assert metaopt.load(tmp_path / "run").outer_steps == 3


def test_the_command_sends_a_python_run_back(tmp_path, command):
    walk(tmp_path / "run")
    done = command(f"resume={tmp_path / 'run'}")
    assert done.code == 1
    assert "was started from Python" in done.err


def test_ctrl_c_keeps_a_checkpoint(tmp_path):
    class Interrupting(Walk):
        def observe(self, outer, inner, feedback):
            if inner["count"] == 3:
                signal.raise_signal(signal.SIGINT)
            return inner

    with pytest.raises(KeyboardInterrupt, match=r"after outer step 3; continue with"):
        metaopt.run(
            Interrupting(), Score(1), Schedule(Constant(1.0)), 9, folder=tmp_path, progress=False
        )
    assert metaopt.load(tmp_path).outer_steps == 3


def test_an_exception_in_a_loss_says_where_it_was():
    class Broken(Ridge):
        def outer_loss(self, outer, inner, batch):
            raise KeyError("missing")

    with pytest.raises(KeyError) as caught:
        metaopt.run(Broken(), Unroll(2), Descent(lr=0.1), 3, progress=False)
    (note,) = caught.value.__notes__
    assert "Broken" in note
    assert "outer step 1" in note
    assert "key" in note
    assert issubclass(Broken, GradientProblem)


class PerExample(Ridge):
    def inner_loss(self, outer, inner, batch):
        return torch.ones(3) * super().inner_loss(outer, inner, batch)


class Number(Ridge):
    def outer_loss(self, outer, inner, batch):
        return 0.5


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (PerExample, r"inner_loss must return a scalar tensor, .*; got shape \(3,\)\."),
        (Number, r"outer_loss must return a scalar tensor, .*; got float\."),
    ],
)
def test_a_loss_that_is_no_scalar_is_named(problem, words):
    with pytest.raises(ValueError, match=words):
        metaopt.run(problem(), Unroll(2), Descent("sgd", lr=0.1), 1, progress=False)
