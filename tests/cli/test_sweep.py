"""The cells of a sweep: a product, or the union of several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from metaopt.cli.sweep import _seeds, union
from metaopt.files.errors import ConfigError


def expanded(axes: list[str], given: list[str], methods: list[Any]) -> list[str]:
    parse = OverridesParser.create().parse_overrides
    return [" ".join(cell) for cell in union(parse(axes), parse(given), methods)]


def test_entries_multiply_with_the_axes_and_add_up() -> None:
    methods = ["f/a", {"method": "f/k", "k": [0, 1]}]
    assert expanded(["seed=0,1"], [], methods) == [
        "method=f/a seed=0", "method=f/a seed=1", "method=f/k k=0 seed=0", "method=f/k k=0 seed=1",
        "method=f/k k=1 seed=0", "method=f/k k=1 seed=1",
    ]  # fmt: skip


def test_the_command_line_goes_over_entries_and_axes() -> None:
    methods = ["f/a", {"method": "f/k", "k": [0, 1]}]
    assert expanded(["seed=0,1"], ["seed=7", "k=5"], methods) == [
        "method=f/a seed=7 k=5", "method=f/k seed=7 k=5"
    ]  # fmt: skip
    assert expanded(["seed=0,1"], ["method=f/b"], methods) == [
        "seed=0 method=f/b", "seed=1 method=f/b"
    ]  # fmt: skip


def test_texts_are_quoted_where_the_grammar_needs_it() -> None:
    (cell,) = expanded([], [], [{"label": "it's a, b", "x": True, "y": None, "z": 1.5e-3}])
    assert cell == r"label='it\'s a, b' x=true y=null z=0.0015"


def test_an_entry_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="name or a mapping of overrides; got 3"):
        expanded([], [], [3])


@pytest.mark.slow
def test_a_table_runs_its_methods_each_once(metaopt: Callable[..., Any]) -> None:
    methods = (
        "methods=[{estimator: [unroll, implicit]}, {outer_lr: 0.2, label: 'K = ${inner_steps}'}]"
    )
    tiny = ("-m", "problem=ridge", "debug=tiny", "figures=false", "seed=0")
    done = metaopt(*tiny, methods)
    assert "3 cells: 3 computed" in done.out, done.err
    (fast,) = Path("results").glob("ridge/*outer_lr=0.2*")
    assert fast.name == "debug=tiny,outer_lr=0.2,problem=ridge,seed=0"
    config = yaml.safe_load((fast / "config.yaml").read_text())
    assert config["label"] == "K = 5"
    assert "methods" not in config
    assert "3 of 3 cells were already finished" in metaopt(*tiny, methods).out


@pytest.mark.parametrize(
    ("axes", "twice"),
    [
        (["seed=0,1", "seeds=2"], "seed 1"),
        (["seed=5,0,4", "seeds=1,2"], "seeds 0, 4, 5"),
        (["seeds=1,2"], "seed 0"),
        (["seeds=[0,1],[1,2]"], "seed 1"),
        (["seed=range(0,3)", "seeds=2"], "seeds 1, 2"),
    ],
    ids=str,
)
def test_seeds_that_two_cells_would_train_are_refused(
    metaopt: Callable[..., Any], tmp_path: Path, axes: list[str], twice: str
) -> None:
    done = metaopt("-m", "problem=ridge", "debug=tiny", *axes)
    assert done.code == 1
    assert f"{' '.join(axes)}: {twice} would be trained by several runs" in done.err.replace(
        "seed=0,1,2", "seed=range(0,3)"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["[1,2]", "'\\'[\\''", "{a:1}", "a", "1.5"])
def test_a_seed_that_is_no_whole_number_is_left_to_its_run(value: str) -> None:
    assert _seeds(f"seed={value}", "seeds=None") == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["experiment=reward_model/real_text",
             "method=reward_model/vanilla,reward_model/minilm"],
            "hh_harmless and llmbar and minilm and pandalm must be fetched first: "
            "metaopt-fetch hh_harmless && metaopt-fetch llmbar && metaopt-fetch minilm",
        ),
        (
            ["-m", "problem=reward_model/text", "+problem.task.lora.r=2",
             "problem.task.backbone=/a/folder,smollm2"],
            "smollm2 must be fetched first, for 1 of 2 methods: metaopt-fetch smollm2 (or choose "
            "others with method=NAME,NAME)",
        ),
    ],
)  # fmt: skip
def test_what_must_be_fetched_is_said_once_before_the_first_cell(
    words: list[str],
    said: str,
    metaopt: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    done = metaopt(*words)
    assert done.code == 1
    assert done.err.count("must be fetched") == 1
    assert f"metaopt: {said}" in done.err
    assert not Path("results").exists()


@pytest.mark.parametrize("installed", [None, "3.6.1"])
def test_a_search_without_optuna_names_the_extra(
    metaopt: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    installed: str | None,
) -> None:
    version = metadata.version

    def found(name: str) -> str:
        if name != "optuna":
            return version(name)
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", found)
    monkeypatch.setitem(sys.modules, "optuna", None)  # an import of it fails
    for name in ("study", "trial", "search_space"):
        monkeypatch.delitem(sys.modules, f"metaopt.cli.{name}", raising=False)
    done = metaopt("experiment=ridge/tune", "hydra.sweeper.n_trials=2")
    assert done.code == 1
    assert f"needs optuna 4 or later; installed is {installed or 'none'}" in done.err
    assert "pip install 'metaopt[sweep]'" in done.err
    assert "Traceback" not in done.err
    assert not [*tmp_path.iterdir()]
