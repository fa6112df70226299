"""A sweep of two methods."""

import pytest
from run_folders import REPORT, write_run


@pytest.fixture
def sweep(tmp_path):
    for row in ("better", "plain"):
        for seed in range(4):
            write_run(tmp_path / f"{row}-{seed}", seed, row, report=REPORT)
    return tmp_path
