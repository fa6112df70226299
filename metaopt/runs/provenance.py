"""Where a result comes from: the code and the machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import metaopt
from metaopt.files.errors import DamagedFileError, listed
from metaopt.runs.configs import TOTALS, differences
from metaopt.runs.folder import read_provenance

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "transformers", "datasets", "hydra-core")


PLACE = ("versions", "commit", "hardware", "processes")
"""What a record says of where a run was started, which its numbers may depend on."""


def provenance() -> dict[str, Any]:
    """Return versions, commit and hardware, as primitives."""
    return {"versions": dict(versions()), "commit": commit(), "hardware": hardware()}


def resume_command(folder: Path, trusting: bool = False) -> str:
    """Return the command that continues the run of a folder, with its config folders.

    Args:
        folder: the run's.
        trusting: name the packages that the run needs, too, and config folders anywhere; only of a
            run that this process has run, since a folder from elsewhere may say anything.
    """
    record = _record(folder)
    trust = [f"trust=[{','.join(record['trust'])}]"] if trusting and record.get("trust") else []
    places = _config_dirs(record, folder, trusting)
    command = _command(record.get("processes"))
    return shlex.join([*command, *places, f"resume={folder}", *trust])


def repeat_command(folder: Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return the command that computes a run again from its start; of one from Python, that it was.

    Of an extended run that of a run which was as long from the start, unless its config has values
    that came from the old number of outer steps: then both commands.

    Args:
        folder: the run's.
        config: its config.
        result: what its result.json holds; nothing of a run that is not over.
    """
    if "started" in config:
        return f"(started {config['started']})"
    record = _record(folder)
    if not (overrides := result.get("overrides") or record.get("overrides")):
        return "(its overrides are not known)"
    extended = {f"{key}={value}": key for key, value in (record.get("extended") or {}).items()}
    command = _command(result.get("processes"))
    words = [*command, *_config_dirs(record, folder)]
    if config.get(TOTALS) and extended:
        start = shlex.join([*words, *map(str, overrides)])
        return f"{start}; then {shlex.join(command)} resume=<its folder> {shlex.join(extended)}"
    same = [w for w in map(str, overrides) if w.partition("=")[0] not in extended.values()]
    return shlex.join([*words, *same, *extended])


def _command(processes: Any) -> list[str]:
    """Return the words that start the command in as many processes."""
    if type(processes) is not int or processes < 2:
        return ["metaopt"]
    return ["torchrun", "--standalone", f"--nproc_per_node={processes}", "-m", "metaopt"]


def _record(folder: Path) -> dict[str, Any]:
    try:
        return read_provenance(folder)
    except DamagedFileError:  # which the command then names
        return {}


def _config_dirs(record: Mapping[str, Any], folder: Path, trusting: bool = False) -> list[str]:
    known = [p for p in record.get("config_dirs", []) if trusting or _is_of_user(Path(p), folder)]
    return [word for place in known for word in ("--config-dir", place)]


def _is_of_user(place: Path, folder: Path) -> bool:
    """Return whether a config folder is below the working folder and did not come with the run.

    The modules next to it would run.
    """
    here, place, folder = Path.cwd(), place.resolve(), folder.resolve()
    if here not in place.parents:
        return False
    if here not in folder.parents:
        return folder != here
    top = here / folder.relative_to(here).parts[0]
    return top == folder or top not in place.parents


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python, metaopt and the packages that numbers depend on."""
    installed = {"python": platform.python_version(), "metaopt": metaopt.__version__}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


@cache
def commit() -> str | None:
    """Return the commit of the source tree, `-dirty` behind it where files were changed.

    `None` where metaopt is installed outside a git checkout, or there is no git.
    """
    source = Path(metaopt.__file__).parent
    head = _git(source, "rev-parse", "HEAD")
    if head is None or _git(source, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return head + ("-dirty" if _git(source, "status", "--porcelain", "-uno") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def hardware() -> dict[str, Any]:
    """Return the CPU, what torch uses of it, and the names of the GPUs.

    Numbers depend on the instruction set that torch dispatches to (`cpu_capability`, which
    `ATEN_CPU_CAPABILITY` lowers) and on the number of threads: both change the order of sums.
    """
    import torch  # here, since comparing configs need not wait for it

    return {
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


@cache
def _cpu(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the CPU with its family and model, by which libraries choose kernels.

    A virtual machine may give several generations one name.
    """
    said: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.is_file() else []:
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    name = said.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in said or "model" not in said:
        return name
    return f"{name} (family {said['cpu family']} model {said['model']})"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def say_changes(folder: Path, origin: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say on the standard error where a run goes on with other code or on another machine."""
    then, new = ({k: x[k] for k in PLACE if k in x} for x in (origin, now))
    if changed := differences(then, new):
        print(f"{folder} goes on with other code or hardware than it was started with (then -> "
              f"now), and its numbers may differ from an uninterrupted run's:\n{listed(changed)}",
              file=sys.stderr)  # fmt: skip
