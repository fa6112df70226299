from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra._internal.config_repository import ConfigRepository

from metaopt import cli
from metaopt.cli import folders


class Done(NamedTuple):
    code: int
    out: str
    err: str


def pytest_collection_finish() -> None:
    """Spare the collector what lives as long as the tests: modules and the tests themselves."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def shipped_files_are_parsed_once() -> Iterator[None]:
    """Keep what hydra reads from the shipped folder alone; a third of composing is parsing."""
    read, cache = ConfigRepository.load_config, {}
    alone = [f"file://{folders.shipped()}"]

    def load(self: ConfigRepository, config_path: str) -> Any:
        files = [s.path for s in self.get_sources() if s.scheme() == "file"]
        if files != alone:
            return read(self, config_path)
        if config_path not in cache:
            cache[config_path] = read(self, config_path)
        return copy.deepcopy(cache[config_path])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load)
        yield


@pytest.fixture
def metaopt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The command line in an empty folder; returns exit code, output and messages."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["metaopt", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return Done(int(stop.value.code or 0), out, err)

    return run
