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

    def __post_init__(self):
        check_ranges(self, "lr > 0 or null", "0 <= warmup < total")
        check_choices(self, decay=("cosine", None), total=(1, 10))


@pytest.mark.parametrize(
    "settings", [{}, {"lr": None}, {"warmup": 9}, {"lr": float("inf")}, {"decay": "cosine"}]
)
def test_values_in_range_are_accepted(settings):
    assert Settings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, "Settings needs lr > 0 or null; got lr=0."),
        ({"lr": float("nan")}, "Settings needs lr > 0 or null; got lr=nan."),
        ({"lr": "abc"}, "Settings needs lr > 0 or null; got lr='abc'."),
        ({"warmup": -1}, "Settings needs 0 <= warmup < total; got warmup=-1, total=10."),
        ({"decay": "step"}, "Settings needs decay to be one of cosine, null; got decay='step'."),
        ({"total": 5}, "Settings needs total to be one of 1, 10; got total=5."),
        ({"warmup": 10}, "Settings needs 0 <= warmup < total; got warmup=10, total=10."),
    ],
)
def test_other_values_are_named_with_their_range(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Settings(**settings)
