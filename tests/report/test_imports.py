import pkgutil
import subprocess
import sys

import pytest

import metaopt.report

HEAVY = ("matplotlib", "scipy.stats", "pandas", "rich")


@pytest.mark.slow
def test_the_report_imports_nothing_heavy_before_it_is_needed():
    names = [f"metaopt.report.{m.name}" for m in pkgutil.iter_modules(metaopt.report.__path__)]
    code = f"import sys, {', '.join(names)}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(names) >= 10
    assert done.stdout.strip() == "[]"
