"""What the folder of a run says of it is checked by kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metaopt.files.errors import DamagedFileError
from metaopt.runs.folder import read_config, result_of

CONFIG = {"seed": 0, "outer_steps": 3}
RESULT = {
    "metrics": {"outer/loss": 0.5},
    "seeds": [0, 1],
    "replicates": {"outer/loss": [0.4, None]},
}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metrics": {"a": 10**400}}, "metrics is not a mapping of numbers"),
        ({"metrics": {"a": True}}, "metrics is not a mapping of numbers"),
        ({"outer_steps": -1}, "outer_steps is not a whole number >= 0"),
        ({"replicates": {"a": []}}, "replicates is not a mapping of lists of numbers"),
        ({"replicates": {"a": ["x", 1.0]}}, "replicates is not a mapping of lists of numbers"),
        ({"replicates": {"a": [1.0], "b": [1.0, 2.0]}}, "as many of each metric"),
        ({"seeds": [0, 1, 2]}, "it has 3 seeds, and 2 values of each metric"),
        ({"resplit": "x"}, "resplit is not a number >= 0"),
        ({"versions": 3}, "versions is not a mapping"),
    ],
    ids=str,
)
def test_a_result_of_another_kind_is_damaged(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT))
    assert result_of(tmp_path) == RESULT
    path.write_text(json.dumps({**RESULT, **change}))
    with pytest.raises(DamagedFileError, match=why):
        result_of(tmp_path)


@pytest.mark.parametrize("change", [{"seed": "0"}, {"outer_steps": None}, {"report": 3}], ids=str)
def test_a_config_of_another_kind_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(CONFIG))
    assert read_config(tmp_path) == CONFIG
    path.write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(DamagedFileError, match=f"{next(iter(change))} is not a"):
        read_config(tmp_path)
