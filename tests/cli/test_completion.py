"""What TAB offers, in the shells that Hydra has scripts for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Metaopt = Callable[..., Any]


@pytest.fixture
def offered(metaopt: Metaopt, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    def ask(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        done = metaopt("-sc", "query=fish")
        assert (done.code, done.err) == (0, "")
        return [name for name in done.out.split("\n") if name]

    return ask


def folders_of_runs() -> None:
    for name in ("runs/ridge/one", "runs/ridge/two"):
        Path(name).mkdir(parents=True)
        Path(name, "config.yaml").touch()
    Path("runs/plain").mkdir()
    Path("conf/problem").mkdir(parents=True)
    Path("conf/problem/mine.yaml").write_text("# @package _global_\nname: mine\nmine_only: 1\n")


CASES = {
    "metaopt sh": ["show"],
    "metaopt prob": ["problem="],
    "metaopt outer_s": ["outer_steps="],
    "metaopt problem=rid": ["problem=ridge"],
    "metaopt problem=ridge outer_l": ["outer_lr="],
    "metaopt problem=ridge estimator=implicit_n": [
        "estimator=implicit_neumann", "estimator=implicit_nystrom",
    ],
    "metaopt experiment=ridge/": ["experiment=ridge/estimators", "experiment=ridge/tune"],
    "metaopt problem=ridge early_stopping.m": [
        "early_stopping.metric=", "early_stopping.min_delta=", "early_stopping.mode=",
    ],
    "metaopt problem=ridge early": ["early_stopping."],
    "metaopt check problem=ridge estimator=implicit_ny": ["estimator=implicit_nystrom"],
    "metaopt profile problem=ridge outer_l": ["outer_lr="],
    "metaopt --config-dir conf problem=min": ["problem=mine"],
    "metaopt --config-dir conf problem=mine mine": ["mine_only="],
    "metaopt -m problem=ridge outer_l": ["outer_lr="],
    "metaopt resume=runs/ridge/": ["resume=runs/ridge/one", "resume=runs/ridge/two"],
    "metaopt ls r": ["runs/"],
    "metaopt show runs/": ["runs/plain/", "runs/ridge/"],
    "metaopt show runs/ridge/t": ["runs/ridge/two"],
    "metaopt -m problem=ridge hydra/l": ["hydra/launcher="],
    "metaopt -m hydra/launcher=s": [
        "hydra/launcher=submitit_local", "hydra/launcher=submitit_slurm",
    ],
    "metaopt -m estimator=unroll,implicit_ny": ["estimator=unroll,implicit_nystrom"],
    "metaopt fetch g": [],
    "metaopt problem=nothing outer_l": [],
    "metaopt --config-dir nowhere prob": [],
    "metaopt data@problem.task.data=data_curation/r": ["data@problem.task.data=data_curation/rows"],
}  # fmt: skip


@pytest.mark.parametrize("line", CASES)
def test_a_line_goes_on_with(line: str, offered: Callable[[str], list[str]]) -> None:
    folders_of_runs()
    assert offered(line) == CASES[line]


def test_the_first_word_may_be_a_verb_a_group_or_a_key(offered: Callable[[str], list[str]]) -> None:
    names = offered("metaopt ")
    assert {"ls", "check", "problem=", "outer_steps=", "resume=", "early_stopping."} <= {*names}
    assert "ls" not in offered("metaopt problem=ridge ")


SCRIPT = """
eval "$(metaopt -sc install=bash)"
COMP_LINE="metaopt problem=rid"; COMP_POINT=19; COMP_CWORD=1
hydra_bash_completion
echo "${COMPREPLY[@]}"
"""


@pytest.mark.slow
def test_bash_completes_by_the_script_of_hydra(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    command = tmp_path / "metaopt"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m metaopt "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([bash, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "problem=ridge"


def test_completion_waits_for_nothing_heavy() -> None:
    code = (
        "import os, sys; os.environ['COMP_LINE'] = 'metaopt problem=ridge outer_'\n"
        "from metaopt.cli.completion import complete; complete('bash')\n"
        "sys.exit(' '.join({'torch', 'matplotlib', 'transformers'} & {*sys.modules}) or 0)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "outer_lr= outer_steps=\n"
