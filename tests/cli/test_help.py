"""The help, the verbs and what starting them imports."""

from __future__ import annotations

import configparser
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaopt.cli import folders
from metaopt.cli.help import overview
from metaopt.cli.verbs import VERBS, call

Metaopt = Callable[..., Any]
HEAVY = ("matplotlib", "scipy.stats", "pandas", "transformers", "datasets", "wandb", "sklearn")


def imported(program: str, *names: str) -> set[str]:
    """Return which of the modules a program has imported at its end."""
    lines = f"{program}\nimport sys\nprint('imported', *({names!r} & sys.modules.keys()))"
    lines = lines.replace(f"{names!r} &", f"{set(names)!r} &")
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_command_imports_nothing_heavy() -> None:
    assert imported("import metaopt.cli, metaopt.cli.command", *HEAVY) == set()


@pytest.mark.slow
def test_a_run_imports_nothing_heavy(tmp_path: Path) -> None:
    run = (
        "import os, sys; from metaopt.cli.command import run\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "run(['problem=ridge', 'debug=tiny', 'figures=false'])"
    )
    assert imported(run, *HEAVY, "torch._dynamo") == set()


@pytest.mark.slow
def test_reward_models_on_features_start_without_transformers() -> None:
    assert imported("import metaopt.problems.reward_model", "transformers", "pandas") == set()


def test_the_help_is_one_screen_that_says_what_to_try(metaopt: Metaopt) -> None:
    done = metaopt("--help")
    lines = done.out.splitlines()
    assert done.code == 0
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 110
    for expected in ("problem=ridge", "unroll", "bi-level", "resume=", "--config-dir", "check"):
        assert expected in done.out
    assert all(f"\n  {group} " in done.out for group in folders.groups())
    assert metaopt().out == done.out


@pytest.mark.parametrize("width", [70, 80, 100])
def test_the_help_fits_a_terminal_in_two_columns(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(sys.stdout.__class__, "isatty", lambda self: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    text = overview(folders.groups())
    assert max(map(len, text.splitlines())) <= width
    assert all(line.startswith("  ") for line in text.partition("\nMore\n")[2].splitlines())
    assert "  metaopt experiment=ridge/tune        a search" in text


@pytest.mark.parametrize("group", folders.groups())
def test_the_help_of_a_group_lists_every_option(metaopt: Metaopt, group: str) -> None:
    done = metaopt("--help", group)
    assert done.code == 0
    for option, text in folders.groups()[group].items():
        assert f"  {option} " in done.out
        assert text in done.out


def test_the_help_of_an_option_prints_its_keys_with_comments(metaopt: Metaopt) -> None:
    for arguments in (
        ("--help", "problem=meta_pseudo_labels"),
        ("problem=meta_pseudo_labels", "-h"),
    ):
        done = metaopt(*arguments)
        assert done.code == 0
        assert "labels: sample         # sample, soft (estimator one_step" in done.out
        assert "@package" not in done.out
    assert "outer_steps: 100         # number T of outer steps" in metaopt("--help", "train").out


def test_a_wrong_topic_is_answered_with_what_there_is(metaopt: Metaopt) -> None:
    done = metaopt("--help", "problm")
    assert (done.code, "no group 'problm'" in done.err) == (1, True)
    done = metaopt("--help", "problem=rigde")
    assert (done.code, "The nearest: ridge" in done.err) == (1, True)
    assert "Traceback" not in done.err


def test_each_verb_is_a_script_or_says_that_it_is_none() -> None:
    parser = configparser.ConfigParser()
    parser.read(folders.shipped().parent / "setup.cfg")
    listed = parser["options.entry_points"]["console_scripts"].split("\n")
    scripts = dict(line.split(" = ") for line in listed if line)
    assert scripts.pop("metaopt") == "metaopt.cli:main"
    assert scripts == {f"metaopt-{n}": f"metaopt.cli:{n}" for n, v in VERBS.items() if v.script}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_says_how_it_is_used(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = call(verb, ["--help"])
    except SystemExit as stop:  # argparse's
        code = int(stop.code or 0)
    text = capsys.readouterr().out
    assert code == 0
    assert verb in text
    assert max(map(len, text.splitlines())) <= 80


def test_runs_are_listed_with_their_state(metaopt: Metaopt) -> None:
    assert metaopt("problem=ridge", "debug=tiny", "figures=false", "label=mine").code == 0
    (folder,) = Path().glob("runs/ridge/*")
    listed = metaopt("ls", "runs")
    assert f"\n{folder}\tfinished\t3\t3\teval/test_loss\t" in listed.out
    assert "\tmine\tseed 0\tmetaopt problem=ridge debug=tiny" in listed.out
    shown = metaopt("show", str(folder)).out
    assert "metaopt.problems.examples.Ridge" in shown
    assert f"metaopt-report {folder}" in shown
    (folder / "result.json").unlink()
    assert "killed\t3\t3" in metaopt("ls", "runs").out
    assert f"metaopt resume={folder}" in metaopt("show", str(folder)).out


def test_a_folder_without_runs_is_named(metaopt: Metaopt) -> None:
    assert "There is no folder runs" in metaopt("ls").err
    assert "nowhere/config.yaml is missing" in metaopt("show", "nowhere").err


def test_a_part_of_a_problem_is_chosen_at_its_place(metaopt: Metaopt) -> None:
    assert "choose with data@problem.<key>=OPTION" in metaopt("--help", "data").out
    assert "choose with estimator=OPTION" in metaopt("--help", "estimator").out


def test_a_failed_run_is_listed_with_its_error_and_not_the_note_behind(metaopt: Metaopt) -> None:
    unstable = ("problem.max_penalty=null", "outer_lr=1.0e+6")
    assert metaopt("problem=ridge", "debug=tiny", *unstable, "outer_steps=20").code == 1
    assert "In outer step" in next(Path().glob("runs/ridge/*/error.log")).read_text()
    assert "\tmetaopt.engine.protocols.NonFiniteError: outer loss is" in metaopt("ls").out
