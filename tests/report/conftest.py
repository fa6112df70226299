"""A sweep of two methods."""

import pytest
from run_folders import REPORT, write_run

from metaopt.report import run_page


@pytest.fixture
def sweep(tmp_path):
    for row in ("better", "plain"):
        for seed in range(4):
            write_run(tmp_path / f"{row}-{seed}", seed, row, report=REPORT)
    return tmp_path


@pytest.fixture(autouse=True)
def without_curves(request, monkeypatch):
    """Draw no curves of each run, which takes half a second, but in the tests of pages."""
    if request.path.name != "test_pages.py":
        monkeypatch.setattr(run_page, "learning_curve", lambda folder, into: [])
