"""What is in the folder of a run: its README, what the problem has delivered, and the hashes."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metaopt.engine import Engine
from metaopt.files import lock, sums
from metaopt.files.errors import ConfigError, FolderError, listed
from metaopt.files.reading import steps
from metaopt.files.writing import write_text
from metaopt.runs import checks, export, stopping
from metaopt.runs.provenance import resume_command

FOLDERS = (
    "checkpoints", "figures", "report", "reverse", "snapshots", "tensorboard", "wandb",
)  # fmt: skip

FILES = (
    "README.md", sums.NAME, checks.FILE, "config.yaml", "error.log", "final.pt", "metrics.jsonl",
    "provenance.json", "result.json", "timing.json", stopping.FILE,
)  # fmt: skip

RUN_FILES = (*FOLDERS, *FILES)
"""What every run may have in its folder; the rest is the problem's."""

UNHASHED = (
    "README.md", sums.NAME, checks.FILE, "checkpoints", "config.yaml", "error.log", "report",
    "tensorboard", "wandb",
)  # fmt: skip
"""What changes after the end, has checksums of its own, or is compared with provenance.json."""


def refuse_misplaced(folder: Path) -> None:
    """Raise a `FolderError` where something stands in the place of a file of a run, or of a folder.

    Some are written at the very end, when it would be late to notice.
    """
    files = [folder / name for name in (*FILES, *export.FILES)]
    files += [path for _, path in steps(folder / "snapshots")]
    files += [path.with_name(f"{path.name}.part") for path in files]  # see `replacing`
    lines = [f"{path} is no file" for path in files if path.exists() and not path.is_file()]
    folders = [folder / name for name in FOLDERS]
    lines += [f"{path} is no folder" for path in folders if path.exists() and not path.is_dir()]
    if lines:
        raise FolderError(
            f"A run cannot write to {folder}:\n{listed(lines)}\n"
            f"Nothing was computed. Move them away, or delete them."
        )


def write_readme(folder: Path, label: str, engine: Engine, from_python: bool) -> None:
    """Write what a run is, how to resume and load it, and what else it has delivered."""
    roles = engine.problem, engine.estimator, engine.optimizer
    parts = ", ".join(type(role).__name__ for role in roles)
    resume = f"`{resume_command(folder, trusting=True)}`"
    if from_python:
        resume = f'`metaopt.resume("{folder}", problem=<the one it was started with>)`'
    text = (
        f"{label}: {parts}; {engine.outer_steps} outer steps.\n\n"
        f"To resume it: {resume}.\n\n"
        f'To load it: `metaopt.load("{folder}")`; `outer.*` and `inner.safetensors` are for '
        f"other programs.\n{_products(folder)}"
    )
    write_text(folder / "README.md", text)


def _products(folder: Path) -> str:
    """Return a paragraph with the files of a folder that its problem has delivered, or nothing."""
    names = [f"`{p.name}{'/' * p.is_dir()}`" for p in sorted(folder.iterdir()) if delivered(p)]
    if not names:
        return ""
    return f"\nDelivered: {', '.join(names)}; the docs' page of the family has how to use them.\n"


def delivered(path: Path) -> bool:
    """Return whether a file or folder of a run is what its problem has delivered."""
    return path.name not in RUN_FILES and not path.name.startswith((".", "outer.", "inner."))


def write_sums(folder: Path, result: str) -> None:
    """Write the hashes of a finished run's files, and of the `result.json` that is to follow."""
    files = [path for path in folder.rglob("*") if path.is_file() and _stays(path, folder)]
    sums.write(folder, files, {"result.json": result})


def _stays(path: Path, folder: Path) -> bool:
    top = path.relative_to(folder).parts[0]
    return top not in UNHASHED and not top.startswith(".")


@contextmanager
def empty_if_refused(folder: Path, engine: Engine) -> Iterator[None]:
    """Leave a folder as empty as it was if its run is refused in its first outer step.

    Refusals are what metaopt words. An error of other code, such as the user's problem, has a
    traceback that is kept in the folder. Inside `metaopt.files.lock.locked`: what another process
    writes meanwhile would be removed.
    """
    empty = all(path.name == lock.NAME for path in folder.iterdir())
    try:
        yield
    except (ValueError, TypeError) as error:
        refused = isinstance(error, ConfigError) or _raised_by(error).startswith("metaopt.")
        if empty and refused and engine.outer_step <= 1 and not steps(folder / "checkpoints"):
            for path in (folder / name for name in RUN_FILES):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        raise


def _raised_by(error: BaseException) -> str:
    """Return the module whose code raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def discard_later(folder: Path, step: int) -> None:
    """Remove what an earlier process of the run, or another run, has left beyond a step."""
    for number, path in steps(folder / "snapshots"):
        if number > step:
            path.unlink()
    for place in (folder, folder / "checkpoints", folder / "snapshots"):
        for part in filter(Path.is_file, place.glob("*.part")):
            part.unlink()
