"""A continued run is the one that was started: edits and foreign checkpoints are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaopt.files.reading import steps

Metaopt = Callable[..., Any]
RUN = ("problem=ridge", "figures=false", "checkpoint_every=2", "outer_steps=4")


def edit(folder: str, **changes: Any) -> None:
    path = Path(folder, "config.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def unfinish(folder: str) -> None:
    """Leave what a run that was killed after its second step leaves."""
    Path(folder, "result.json").unlink()
    steps(Path(folder, "checkpoints"))[-1][1].unlink()


def content(folder: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("outer_lr", 0.5, "outer_lr: 0.1 -> 0.5"),
        ("seed", 1, "seed: 0 -> 1"),
        ("outer_steps", 3, "outer_steps: 4 -> 3"),
        ("optimizer", {"_target_": "metaopt.optimizers.Descent"}, "optimizer.lr: 0.1 -> absent"),
    ],
)
def test_an_edited_config_is_refused_with_the_keys(
    metaopt: Metaopt, finished: bool, key: str, value: object, line: str
) -> None:
    assert metaopt(*RUN, "outer_lr=0.1", "hydra.run.dir=run").code == 0
    if not finished:
        unfinish("run")
    edit("run", **{key: value})
    before = content("run")
    done = metaopt("resume=run")
    assert done.code == 1
    assert "run/config.yaml was edited since the run was started" in done.err
    assert line in done.err
    assert ("metaopt resume=run outer_steps=" in done.err) == (key == "outer_steps")
    assert content("run") == before


def test_an_edit_that_leaves_the_numbers_alone_is_no_edit(metaopt: Metaopt) -> None:
    metaopt(*RUN, "hydra.run.dir=run")
    before = Path("run/result.json").read_bytes()
    unfinish("run")
    edit("run", label="another", checkpoint_every=1)
    assert metaopt("resume=run").code == 0
    assert Path("run/result.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
def test_more_outer_steps_extend_a_run_to_the_bit(metaopt: Metaopt, finished: bool) -> None:
    metaopt(*RUN, "outer_steps=9", "hydra.run.dir=long")
    metaopt(*RUN, "hydra.run.dir=run")
    if not finished:
        unfinish("run")
    assert metaopt("resume=run", "outer_steps=9").code == 0
    long, run = (json.loads(Path(name, "result.json").read_text()) for name in ("long", "run"))
    assert {**run, "overrides": long["overrides"]} == long
    unfinish("run")  # what was extended is what a further continuation goes by
    assert metaopt("resume=run").code == 0
    assert json.loads(Path("run/result.json").read_text()) == run
    done = metaopt("resume=run", "outer_steps=2")
    assert "outer_steps=2 is below the 9" in done.err


def test_what_is_no_checkpoint_of_the_run_is_no_progress(metaopt: Metaopt) -> None:
    metaopt(*RUN, "hydra.run.dir=run")
    before = Path("run/result.json").read_bytes()
    unfinish("run")
    stray = Path("run/checkpoints/step_99999999999999999999.pt")
    stray.write_bytes(b"stray")
    Path("run/checkpoints/step_00000003.pt").mkdir()
    Path("run/checkpoints/step_00000004.pt").write_bytes(b"damaged")
    listed = metaopt("ls", ".").out
    assert "run\tkilled\t2\t4\t" in listed
    assert f"{stray.name} is damaged, or another run's" in listed
    assert "is below the 2" in metaopt("resume=run", "outer_steps=1").err
    done = metaopt("resume=run")
    assert f"{stray} is damaged; continuing from step_00000002.pt" in done.err
    assert Path("run/result.json").read_bytes() == before


def test_a_checkpoint_of_another_run_is_refused(metaopt: Metaopt) -> None:
    for seed in (0, 1):
        metaopt(*RUN, f"seed={seed}", f"outer_steps={4 + seed}", f"hydra.run.dir=run{seed}")
    shutil.copy("run1/checkpoints/step_00000005.pt", "run0/checkpoints")
    before = content("run0")
    done = metaopt("resume=run0", "outer_steps=8")
    assert done.code == 1
    path = "run0/checkpoints/step_00000005.pt"
    assert f"{path} is a checkpoint of a run of another config" in done.err
    assert "seed: 1 -> 0" in done.err
    assert content("run0") == before


def test_a_run_without_checkpoint_leaves_its_folder_to_another_config(metaopt: Metaopt) -> None:
    metaopt(*RUN, "hydra.run.dir=run")
    Path("run/result.json").unlink()
    shutil.rmtree("run/checkpoints")
    assert metaopt(*RUN, "seed=1", "hydra.run.dir=run").code == 0
    record = json.loads(Path("run/provenance.json").read_text())
    assert record["config"]["seed"] == 1
    assert "seed=1" in record["overrides"]
