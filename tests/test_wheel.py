"""The wheel carries the configuration and works from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent

pytestmark = pytest.mark.wheel


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH would let the source tree stand in for the wheel.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(["git", "clone", "--quiet", str(SOURCE), "source"], folder)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--quiet", "-w", "dist", "./source"], folder)
    (actual,) = (folder / "dist").glob("metaopt-*.whl")
    return actual


def test_the_wheel_holds_every_module_and_every_yaml(wheel: Path) -> None:
    tracked = run(["git", "ls-files", "metaopt", "configs"], SOURCE).stdout.split()
    expected = {f"metaopt/{f}" if f.startswith("configs/") else f for f in tracked}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= names
    strangers = {n for n in names - expected if ".dist-info/" not in n}
    assert not strangers


def test_it_runs_in_another_environment_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """The dependencies come from this environment, metaopt from the wheel alone."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
               tmp_path).stdout.strip()  # fmt: skip
    # A plain path line: the .pth files of this environment, editable installs too, are not read.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall",
         str(wheel)], tmp_path)  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run([str(python), "-c", "import metaopt; print(metaopt.__file__)"], elsewhere).stdout
    assert where.startswith(site)
    command = tmp_path / "venv" / "bin" / "metaopt"
    done = run([str(command), "problem=ridge", "debug=tiny"], elsewhere)
    assert "everything is in runs/ridge" in done.stdout
    assert len(list(elsewhere.glob("runs/ridge/*/result.json"))) == 1
    assert "problem=ridge" in run([str(command), "--help"], elsewhere).stdout
