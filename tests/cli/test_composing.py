"""Messages of a config's parts name the keys that are typed."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.errors import InstantiationException

from metaopt.cli.composing import cause, parts, with_keys

FILES = "metaopt.problems.process_reward.data.process_files.process_files"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("limit must be 1.", "a.b.limit must be 1."),
        ("No. leaks may be drop", "No. a.b.leaks may be drop"),
        ("set leaks=drop", "set a.b.leaks=drop"),
        ("by columns={a: b}; or", "by a.b.columns={a: b}; or"),
        ("the limit must be 1; x.leaks=drop", "the limit must be 1; x.leaks=drop"),
        ("meta_limit=2 and limit==2", "meta_limit=2 and limit==2"),
    ],
)
def test_arguments_become_keys(message: str, says: str) -> None:
    assert with_keys(message, "a.b", ["limit", "leaks", "columns"]) == says


def test_a_refusal_of_a_part_names_its_key() -> None:
    data: dict[str, Any] = {"_target_": FILES, "train": "a", "meta": "b", "limit": 0}
    config = {"problem": {"_target_": "builtins.dict", "task": {"data": data}}}
    with pytest.raises(InstantiationException) as error:
        parts(config, ())
    assert str(cause(error.value)) == "problem.task.data.limit must be >= 1 or null; got 0."
