"""Run the peers, each in its environment, and write their table.

    python -m benchmarks.peers [PEER ...]

Without names all of them, into benchmarks/peers.md; with names the page is only printed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import FOLDER, InstallError, python_for, reason
from benchmarks.peers.page import page
from benchmarks.peers.peer import FILES, load
from metaopt.runs import provenance

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "benchmarks" / "peers.md"


def measured(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Return what was measured of a peer, or the `error` that kept it from being installed or run.

    Args:
        name: of the peer.
        folder: of the environments.
    """
    try:
        python = python_for(name, load(name), folder)
    except InstallError as error:
        return {"error": f"could not be installed: {error}"}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "result.json"
        done = subprocess.run(
            [python, "-m", "benchmarks.peers.measure", name, str(path)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            return {"error": reason(done.stderr)}
        result: dict[str, Any] = json.loads(path.read_text())
    return result


def unexplained(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the cases in which a peer differs from metaopt and does not say why."""
    return [
        f"{name}: {row['case']}, {row['size']}: differs by {row['difference']:.1e}"
        for name, result in results.items()
        for row in result.get("rows", ())
        if "ratio" not in row and "error" not in row and row["case"] not in load(name).differs
    ]


def origin() -> dict[str, Any]:
    """Return where and when the page was made."""
    machine = provenance.hardware()
    return {
        "Commit": provenance.commit(),
        "Machine": f"{machine['cpu']}, {machine['cores']} cores, other programs running",
        "Python": platform.python_version(),
        "Date": date.today().isoformat(),
    }


def main(arguments: Sequence[str]) -> int:
    if unknown := [name for name in arguments if name not in FILES]:
        print(f"no peer {', '.join(unknown)}; there are {', '.join(FILES)}.", file=sys.stderr)
        return 2
    results = {}
    for name in arguments or FILES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = measured(name)
    text = page(results, origin())
    print(text)
    if not arguments:
        PAGE.write_text(text)
    for line in (failures := unexplained(results)):
        print(line, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
