"""Ranges and choices of arguments: what is accepted, and what the message says of the rest."""

from dataclasses import dataclass

import pytest

from metaopt.engine.ranges import check_choices, check_ranges


@dataclass
class Settings:
    lr: float | None = 0.1
    warmup: int = 0
    total: int = 10
    decay: str | None = None
    name: str = ""

    def __post_init__(self):
        check_ranges(self, "lr > 0 or null", "0 <= warmup < total", "name")
        check_choices(self, decay=("cosine", None), total=(1, 10))


@pytest.mark.parametrize("settings", [{}, {"lr": None}, {"warmup": 9}, {"decay": "cosine"}])
def test_values_in_range_are_accepted(settings):
    assert Settings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, "Settings needs lr > 0 or null; got lr=0."),
        *(
            ({"lr": v}, f"Settings needs lr to be a finite number or null, lr > 0.*; got lr={v!r}.")
            for v in (float("nan"), float("inf"), "abc", True, 10**30)
        ),
        ({"warmup": 2.5}, "Settings needs warmup to be an integer, .*; got warmup=2.5, total=10."),
        (
            {"warmup": True},
            "Settings needs warmup to be an integer, .*; got warmup=True, .*",
        ),
        ({"name": 3}, "Settings needs name to be a text; got name=3."),
        ({"warmup": -1}, "Settings needs 0 <= warmup < total; got warmup=-1, total=10."),
        ({"decay": "step"}, "Settings needs decay to be one of cosine, null; got decay='step'."),
        ({"total": 5}, "Settings needs total to be one of 1, 10; got total=5."),
        ({"warmup": 10}, "Settings needs 0 <= warmup < total; got warmup=10, total=10."),
    ],
)
def test_other_values_are_named_with_their_range(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Settings(**settings)
