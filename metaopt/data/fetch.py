"""`metaopt-fetch`: public data sets and models from where they are published, by their hash."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import socket
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.data.fetch_model import FetchError, fetch_model, is_model
from metaopt.data.folder import data_folders, data_sets, models
from metaopt.data.gguf import DTYPES

ELSEWHERE = {"cifar10": "problem.data.source=uoft-cs/cifar10 reads it from the hub, and keeps it"}
"""Data sets that something else downloads, and how."""

GITHUB = "https://github.com"
TIMEOUT = 60.0


def fetch(name: str, folder: str | Path | None = None) -> list[Path]:
    """Download a data set and return the paths of its files.

    A file that is there with the right hash is not downloaded again, and no partial file is left.

    Args:
        name: of the data set.
        folder: data folder; `None` for the first of `data_folders()`.

    Raises:
        ValueError: there is no such data set.
        FetchError: no connection, another content than published, or another file in its place.
    """
    known = data_sets()
    if name in ELSEWHERE:
        raise ValueError(f"metaopt-fetch does not download {name}: {ELSEWHERE[name]}.")
    if name not in known:
        raise ValueError(
            f"there is no data set {name!r}; the names are {', '.join(known)}, and of models "
            f"{', '.join(models())}."
        )
    root = data_folders()[0] if folder is None else Path(folder).expanduser()
    source = f"{GITHUB}/{known[name]['repository']}/raw/{known[name]['commit']}"
    paths = []
    for path, file in known[name]["files"].items():
        _get(f"{source}/{file['source']}", root / path, file)
        paths.append(root / path)
    return paths


def _get(url: str, target: Path, file: Mapping[str, Any]) -> None:
    """Download a file; of one with `bytes`, whose hash is `published`, keep its beginning."""
    if target.exists():
        if hashlib.sha256(target.read_bytes()).hexdigest() == file["sha256"]:
            return
        raise FetchError(f"{target} is there with another content than {url}. Move it away first.")
    from torch.hub import download_url_to_file

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"{target.parent} cannot be made ({error.strerror}). Name another folder."
        ) from error
    whole = target.with_name(f"{target.name}.whole") if "bytes" in file else target
    try:
        # Written next to the target and moved once its hash is right; removed where it fails.
        published = file.get("published", file["sha256"])
        download_url_to_file(url, str(whole), published, progress=False)
        if "bytes" in file:
            os.truncate(whole, file["bytes"])
            whole.replace(target)
    except RuntimeError as error:
        raise FetchError(
            f"{url} gives another content than was published when metaopt was made ({error}). "
            f"Nothing was kept."
        ) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise FetchError(
            f"cannot download {url} ({getattr(error, 'reason', error)}). With a connection "
            f"elsewhere, save it as {target}."
        ) from error


def _described(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what each entry is, in lines of at most 80 columns."""
    for name, known in entries.items():
        text, first = f"{known['content']} ({known['licence']})", f"  {name:<18}"
        yield textwrap.fill(text, 80, initial_indent=first, subsequent_indent=" " * len(first))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    listed = "\n".join([
        "data sets:", *_described(data_sets()), "models:", *_described(models())
    ])  # fmt: skip
    parser = argparse.ArgumentParser(
        "metaopt-fetch",
        description="Download a public data set or a model, checked by its SHA-256 hash.",
        epilog=listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        nargs="?",
        help="one of those below (none lists them); or a .whl of these models or a .gguf that is "
        "here",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        help="data folder, default: $METAOPT_DATA, else the user's cache; of a model its own "
        "folder, default: models/NAME in the data folder",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of a model from GGUF; default: float32")
    given = parser.parse_args(arguments)
    if given.name is None:
        print(listed)
        return 0
    socket.setdefaulttimeout(TIMEOUT)  # the download itself sets none
    try:
        if is_model(given.name):
            print(fetch_model(given.name, given.folder, given.dtype))
            return 0
        if given.dtype is not None:
            raise ValueError(f"--dtype is for models; {given.name} is none. Leave it out.")
        paths = fetch(given.name, given.folder)
    except (ValueError, FetchError) as error:
        print(f"metaopt-fetch: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, paths)))
    if given.folder is not None:
        print(f"metaopt reads it with METAOPT_DATA={given.folder} in the environment.")
    return 0
