"""A run's folder belongs to one process, and is not written through links."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import metaopt as package
from metaopt import ConfigError, Descent, Engine, Unroll
from metaopt.files.errors import FolderInUseError
from metaopt.files.lock import locked
from metaopt.files.reading import steps
from metaopt.problems.examples import Ridge
from metaopt.runs import run as run_module
from metaopt.runs.folder import read_config
from metaopt.runs.interrupts import Pruned
from metaopt.runs.run import Run

Metaopt = Callable[..., Any]
RUN = ("problem=ridge", "debug=tiny", "figures=false", "hydra.run.dir=run")


def content(folder: str) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_folder_in_use_is_left_alone_by_all_that_write(metaopt: Metaopt) -> None:
    metaopt(*RUN)
    Path("run/result.json").unlink()
    before = content("run")
    with locked(Path("run")):
        for command in (RUN, ("resume=run",), ("resume=run", "outer_steps=9")):
            done = metaopt(*command)
            assert done.code == 1
            assert "run is being written to by process " in done.err
            assert "Wait for it, stop it, or choose another folder" in done.err
        with pytest.raises(FolderInUseError):
            package.resume("run", progress=False)
        Path("new").mkdir()
        with locked(Path("new")), pytest.raises(FolderInUseError):
            package.run(Ridge(), Unroll(2), Descent("adam", lr=0.1), 2, folder="new")
        assert not package.load("run").finished  # reading is free
    assert content("run") == before
    assert metaopt("resume=run").code == 0
    assert not Path("run/.lock").exists()


def three_steps(folder: Path) -> Run:
    engine = Engine(Ridge(), Unroll(2), Descent("adam", lr=0.1), outer_steps=3)
    return Run(engine, folder, {"seed": 0, "outer_steps": 3}, watch=None, figures=False)


def test_a_run_that_comes_too_late_leaves_what_another_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def too_late(folder: Path) -> Iterator[None]:
        with locked(folder):  # by the other one, since this run was made
            for name in ("config.yaml", "metrics.jsonl", "result.json"):
                (folder / name).write_text("of the other")
            with locked(folder):
                yield

    monkeypatch.setattr(run_module, "locked", too_late)
    with pytest.raises(FolderInUseError, match="is being written to by"):
        three_steps(tmp_path)()
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "metrics.jsonl", "result.json"]


def test_a_run_that_another_process_has_finished_meanwhile_is_not_done_again(
    tmp_path: Path,
) -> None:
    first, second = three_steps(tmp_path), three_steps(tmp_path)
    first()
    before = content(str(tmp_path))
    with pytest.raises(FolderInUseError, match="was finished by another process in the meantime"):
        second()
    assert content(str(tmp_path)) == before


LINKS = (
    "README.md", "error.log", "figures", "metrics.jsonl", "outer.safetensors",
    "provenance.json.part", "snapshots",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints",
        "metrics.jsonl.part",
        *(pytest.param(name, marks=pytest.mark.slow) for name in LINKS),
    ],
)
def test_a_run_is_not_written_through_a_link(metaopt: Metaopt, name: str) -> None:
    metaopt(*RUN)
    Path("run/result.json").unlink()
    link, target = Path("run", name), Path("victim").absolute()
    if link.is_dir():
        shutil.move(link, target)
    else:
        target.write_text("mine")
        link.unlink(missing_ok=True)
    before = content("victim") if target.is_dir() else target.read_bytes()
    link.symlink_to(target)
    for command in (("resume=run",), RUN):
        done = metaopt(*command)
        assert done.code == 1
        assert "run holds symbolic links, and a run is not written through them:" in done.err
        assert f"\n  {link} -> {target}\n" in done.err
    assert (content("victim") if target.is_dir() else target.read_bytes()) == before


IN_THE_WAY = {"final.pt/x": "file", "outer.json.part/x": "file", "snapshots": "folder"}


def test_what_is_in_the_way_is_named_before_a_run_is_continued(metaopt: Metaopt) -> None:
    metaopt(*RUN)
    shutil.rmtree("run/snapshots", ignore_errors=True)
    for name, kind in IN_THE_WAY.items():
        shutil.copytree("run", "other")
        path = Path("other", name)
        top = Path("other", path.parts[1])
        top.unlink(missing_ok=True)
        top.parent.joinpath(*path.parts[1:-1]).mkdir(exist_ok=True)
        path.write_text("mine")
        before = content("other")
        done = metaopt("resume=other", "outer_steps=9")
        assert done.code == 1
        assert f"A run cannot write to other:\n  {top} is no {kind}\nNothing was" in done.err
        assert content("other") == before
        shutil.rmtree("other")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_what_may_not_be_read_is_named(metaopt: Metaopt) -> None:
    metaopt(*RUN)
    Path("run/result.json").unlink()
    log = Path("run/error.log")
    log.touch(mode=0)
    assert "error.log cannot be read (Permission denied)" in metaopt("report", "run").err
    for folder in (Path("run/checkpoints"), Path("run")):
        folder.chmod(0)
        try:
            with pytest.raises(ConfigError, match=r"cannot be read.*Permission denied"):
                package.load("run")
        finally:
            folder.chmod(0o755)


@pytest.mark.parametrize("name", ["report", "report/table.md"])
def test_a_report_is_not_written_through_a_link(metaopt: Metaopt, name: str) -> None:
    metaopt(*RUN)
    target = Path("victim").absolute()
    Path("run", name).parent.mkdir(exist_ok=True)
    if name == "report":
        target.mkdir()
    else:
        target.write_text("mine")
    Path("run", name).symlink_to(target)
    done = metaopt("report", "run")
    assert done.code == 2
    assert "symbolic link" in done.err
    assert list(target.iterdir()) == [] if target.is_dir() else target.read_text() == "mine"


def test_a_part_that_is_passed_must_be_that_of_the_command(metaopt: Metaopt) -> None:
    metaopt(*RUN)
    with pytest.raises(ConfigError, match=r"another problem:\n  problem\.features: 20 -> 3"):
        package.resume("run", Ridge(features=3), outer_steps=5, progress=False)


def test_other_versions_than_at_the_start_are_said(metaopt: Metaopt) -> None:
    metaopt(*RUN)
    path = Path("run/provenance.json")
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "0.4"
    path.write_text(json.dumps(record))
    for name in ("SHA256SUMS", "result.json"):
        Path("run", name).unlink()
    done = metaopt("resume=run")
    assert done.code == 0
    assert "versions.torch: 0.4 -> " in done.err
    assert json.loads(Path("run/result.json").read_text())["versions"]["torch"] == "0.4"


def test_a_folder_of_a_sweep_names_its_runs(metaopt: Metaopt) -> None:
    metaopt("-m", "problem=ridge", "debug=tiny", "figures=false", "seed=0,1", "hydra.sweep.dir=all")
    assert (
        "It holds 2 runs, such as all/debug=tiny,problem=ridge,seed=0; give one"
        in metaopt("resume=all").err
    )


def test_a_config_in_provenance_json_is_checked_as_config_yaml_is(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    path.write_text('{"config": {"seed": 0}}')
    said = f"{path} is damaged: outer_steps is not a whole number"
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_config(tmp_path)


def test_a_result_of_another_run_is_not_taken_for_this_ones(metaopt: Metaopt) -> None:
    """Folders of before had no SHA256SUMS: the hash of the config tells, too."""
    for run, seed in (("run", 0), ("other", 1)):
        metaopt(*RUN[:-1], f"hydra.run.dir={run}", f"seed={seed}")
        Path(run, "SHA256SUMS").unlink()
    shutil.copy("other/result.json", "run/result.json")
    said = "run/result.json is damaged: it is the result of another config than the folder's. "
    with pytest.raises(ConfigError, match=re.escape(said)):
        package.load("run")
    for command in (("show", "run"), ("resume=run",)):
        done = metaopt(*command)
        assert said in done.out + done.err
    assert said.rstrip(". ") in metaopt("report", "run").err
    Path("run/provenance.json").unlink()  # config.yaml then says whose it is
    assert said in metaopt("show", "run").err
    Path("run/result.json").unlink()
    done = metaopt("resume=run")
    assert done.code == 0
    assert "run/provenance.json is missing or names no overrides" in done.err
    assert package.load("run").finished
    Path("run/SHA256SUMS").unlink()
    shutil.copy("other/final.pt", "run/final.pt")
    with pytest.raises(ConfigError, match=r"final\.pt is of a run of another config"):
        package.load("run")


def test_a_pruned_run_keeps_a_checkpoint_and_no_result(tmp_path: Path) -> None:
    def made(folder: str, prune: Any) -> Run:
        (tmp_path / folder).mkdir(exist_ok=True)
        engine = Engine(Ridge(), Unroll(2), Descent("adam", lr=0.1), outer_steps=6)
        config = {"objective": "eval/test_loss", "seed": 0, "outer_steps": 6}
        settings: Any = {"eval_every": 2, "figures": False, "watch": None}
        return Run(engine, tmp_path / folder, config, **settings, prune=prune)

    whole: list[tuple[int, float]] = []
    undisturbed = made("whole", lambda *given: whole.append(given))()
    assert [step for step, _ in whole] == [2, 4]  # at the end there is nothing to prune
    reported: list[tuple[int, float]] = []

    def prune(step: int, value: float) -> bool:
        reported.append((step, value))
        return step == 4

    with pytest.raises(Pruned, match="pruned after outer step 4"):
        made("pruned", prune)()
    assert reported == whole
    assert [step for step, _ in steps(tmp_path / "pruned" / "checkpoints")] == [4]
    assert not (tmp_path / "pruned" / "result.json").exists()
    assert made("pruned", prune)() == undisturbed  # which goes on with it
