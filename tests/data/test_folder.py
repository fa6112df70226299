"""Data sets are looked for in $METAOPT_DATA, then in the user's cache folder, nowhere else."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from metaopt.data.folder import data_folders, find_data, model_source


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *a, **k: tmp_path / "cache")
    monkeypatch.delenv("METAOPT_DATA", raising=False)
    return tmp_path / "cache" / "data"


def test_the_variable_goes_before_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (cache / "set").mkdir(parents=True)
    assert find_data("set", "set") == cache / "set"
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path / "mine"))
    assert find_data("set", "set") == cache / "set"
    (tmp_path / "mine/set").mkdir(parents=True)
    assert find_data("set", "set") == tmp_path / "mine/set"
    assert data_folders() == [tmp_path / "mine", cache]
    monkeypatch.setenv("METAOPT_DATA", "")
    assert data_folders() == [cache]


def test_missing_data_say_where_they_were_looked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    monkeypatch.setenv("METAOPT_DATA", "/mine")
    with pytest.raises(FileNotFoundError) as error:
        find_data("set/a.json", "letters")
    message = str(error.value)
    assert f"/mine/set/a.json nor at {cache / 'set/a.json'}" in message
    assert "metaopt-fetch letters" in message


def test_a_model_by_name_is_the_folder_that_was_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"models/minilm\. Run `metaopt-fetch minilm`"):
        model_source("minilm")
    (cache / "models" / "minilm").mkdir(parents=True)
    assert model_source("minilm") == cache / "models" / "minilm"
    assert model_source("some/model") == "some/model"
    (tmp_path / "minilm").mkdir()
    assert model_source("minilm") == "minilm"
