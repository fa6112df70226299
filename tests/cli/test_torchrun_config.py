"""What torchrun's environment makes of a config, a device and a command, without its processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metaopt.cli import torchrun, verbs
from metaopt.cli.ranks import check_ranks, with_ranks
from metaopt.files.errors import ConfigError


@pytest.fixture
def two(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "number", "first"),
    [
        ({"WORLD_SIZE": "8"}, 1, True),
        ({"WORLD_SIZE": "", "RANK": "0"}, 1, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1, True),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 2, True),
        ({"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, 2, False),
    ],
)
def test_a_program_that_a_scheduler_started_alone_is_one_process(
    monkeypatch, variables, number, first
):
    for name in ("WORLD_SIZE", "RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (torchrun.processes(), torchrun.is_first()) == (number, first)


def test_ranks_is_in_the_config_where_results_depend_on_it(two, monkeypatch):
    assert with_ranks({"seed": 0, "ranks": "split"}, None) == {"seed": 0}
    assert with_ranks({"ranks": "split"}, {"processes": 4}) == {"processes": 2}
    assert with_ranks({"ranks": "own"}, None) == {"ranks": "own", "processes": 2}
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert with_ranks({"ranks": "own"}, {"processes": 4}) == {}
    with pytest.raises(ConfigError, match="ranks must be split or own; got mine"):
        with_ranks({"ranks": "mine"}, None)


def test_a_device_is_that_of_each_process(two, monkeypatch):
    with pytest.raises(ConfigError, match="device=cuda:1: under torchrun each process has a GPU"):
        check_ranks({"device": "cuda:1"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="this machine has 1 GPUs for 2 processes"):
        check_ranks({"device": "cuda"})
    check_ranks({"device": "cpu", "processes": 2})
    with pytest.raises(ConfigError, match="started with 4 processes, on which"):
        check_ranks({"device": "cpu", "processes": 4})


def test_other_commands_are_done_by_the_first_process(two, monkeypatch, capsys):
    assert verbs.call("ls", ["nowhere"]) == 0
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="nowhere"):
        verbs.call("ls", ["nowhere"])


def test_a_launcher_of_its_own_is_refused(two, metaopt, monkeypatch):
    from metaopt.cli import command

    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setattr(command, "as_one", lambda run, arguments: run())
    done = metaopt("-m", "problem=ridge", "seed=0,1", "hydra/launcher=joblib")
    assert done.code == 1
    assert "which starts processes of its own. Under torchrun the cells run" in done.err
    assert not [*Path().rglob("*")]
