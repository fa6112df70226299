"""CPU seconds of the help and of a tiny run, relative to importing torch and hydra."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

REPEATS = 5
PROGRAMS = {
    "import torch, hydra": (["-c", "import torch, hydra"], None),
    "metaopt --help": (["-m", "metaopt", "--help"], 1.2),
    "metaopt problem=ridge debug=tiny": (["-m", "metaopt", "problem=ridge", "debug=tiny"], 1.3),
}
"""Name: arguments of Python, and the largest ratio that is all right."""


def cpu_seconds(arguments: list[str]) -> float:
    """Return the user and system seconds of a process, less those that a run trained for."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        path = os.pathsep.join(["", str(Path(__file__).parents[1])])
        subprocess.run(
            [sys.executable, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path.lstrip(os.pathsep)},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        timings = Path(folder).glob("runs/*/*/timing.json")
        trained = sum(json.loads(file.read_text())["seconds"] for file in timings)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - trained


def main() -> None:
    """Print the least of several measurements that take turns, and their ratios."""
    least = dict.fromkeys(PROGRAMS, float("inf"))
    for _ in range(REPEATS):
        for name, (arguments, _limit) in PROGRAMS.items():
            least[name] = min(least[name], cpu_seconds(arguments))
    base = least["import torch, hydra"]
    for name, (_, limit) in PROGRAMS.items():
        bound = f" (at most {limit})" if limit else ""
        print(f"{name:<36}{least[name]:6.2f} s   x {least[name] / base:.2f}{bound}")


if __name__ == "__main__":
    main()
