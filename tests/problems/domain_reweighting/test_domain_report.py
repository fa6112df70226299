"""Which hypergradients a run calls noise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import t

from metaopt.problems.domain_reweighting.report import LEVEL, weights_table


def table(folder: Path, z: list[float], count: int) -> str:
    names = tuple("abcdefgh"[: len(z)])
    summary = {
        "weight": torch.linspace(2, 0, len(z)), "effective_share": torch.tensor(0.5),
        "hypergradient": torch.tensor(z), "z": torch.tensor(z), "count": torch.tensor(count),
    }  # fmt: skip
    return weights_table(SimpleNamespace(domains=names, quality=None), summary, folder)


@pytest.mark.parametrize("count", [2, 4, 300])
def test_the_threshold_is_students(tmp_path: Path, count: int) -> None:
    sure = float(t.ppf(1 - LEVEL / 2 / 3, count - 1))
    z = [1.01 * sure, -1.01 * sure, 0.99 * sure]
    assert table(tmp_path, z, count).endswith(f"within noise (|z| < {sure:.1f}): c")


def test_few_steps_tell_less_than_many(tmp_path: Path) -> None:
    z = [4.0, -4.0, 3.5, -3.5]
    assert "these weights are noise" in table(tmp_path, z, 4)
    assert "noise" not in table(tmp_path, z, 400)
    assert "these weights are noise" in table(tmp_path, [0.0] * 4, 1)
