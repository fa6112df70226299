"""`SHA256SUMS`: the hashes of a folder's files, so that a changed one is noticed when it is read.

The lines are those of the program of that name: cd runs/first && sha256sum --check SHA256SUMS
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from metaopt.files.errors import DamagedFileError
from metaopt.files.writing import write_text

NAME = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def matches(path: Path, content: bytes) -> bool:
    """Return whether a file's content is what its folder's sums say; `True` where they do not.

    Raises:
        DamagedFileError: the sums cannot be read.
    """
    listed = read(path.parent).get(path.name)
    return listed is None or listed == sha256(content).hexdigest()


def read(folder: Path) -> dict[str, str]:
    """Return {name: hash} of a folder's sums, empty where it has none."""
    path, why = folder / NAME, "is not lines of a hash and a name"
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise OSError(errno.EINVAL, "not a regular file")
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        lines = [""]
    except OSError as error:
        lines, why = [""], f"cannot be read ({error.strerror})"
    pairs = [match for line in lines if (match := LINE.fullmatch(line))]
    if len(pairs) < max(len(lines), 1):  # an empty file is one that was cut
        raise DamagedFileError(
            f"{path} is damaged: it {why}. Delete it if the other files are known to be good; they "
            f"are then read without a check."
        )
    return {name: digest for digest, name in (match.groups() for match in pairs)}


def changed(folder: Path) -> list[str]:
    """Return the names of files that are missing or are not what the folder's sums say.

    Raises:
        DamagedFileError: the sums cannot be read.
    """
    listed = read(folder)
    return [
        name
        for name, digest in listed.items()
        if not (folder / name).is_file() or of_file(folder / name) != digest
    ]


def write(folder: Path, files: Sequence[Path], texts: Mapping[str, str]) -> None:
    """Write the sums of files in a folder, and of texts by name that are yet to be written."""
    hashes = {path.relative_to(folder).as_posix(): of_file(path) for path in files}
    hashes |= {name: sha256(text.encode()).hexdigest() for name, text in texts.items()}
    write_text(folder / NAME, "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)))


def of_file(path: Path) -> str:
    """Return the SHA-256 hash of a file."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
