"""What a model is published as, and under which licence, for the card of one that is made of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from metaopt.data.folder import model_source, models
from metaopt.nn.model_card import ID

CACHED = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?")
"""Folder of a repository in the cache of huggingface_hub."""


class Origin(NamedTuple):
    """Where a model comes from, as the front matter of a model card has it.

    Args:
        base: id of the hub, or "" where none is known: never a path, which says nothing elsewhere.
        licence: identifier, such as apache-2.0, or "".
    """

    base: str = ""
    licence: str = ""


def origin(source: object) -> Origin:
    """Return what a model was published as.

    A folder that `metaopt-fetch` wrote, wherever it is, is found by the hash in its SOURCE.md, one
    in the hub's cache by its place; of others the README's front matter says the licence, and the
    published model that they were made of.

    Args:
        source: a folder, an id of the hub, a name that `metaopt-fetch` knows, or anything else that
            a model is made of, which has no origin.
    """
    if not isinstance(source, (str, Path)):
        return Origin()
    place = Path(model_source(source))
    if not place.is_dir():
        return Origin(str(source))
    said = _text(place / "SOURCE.md")
    for entry in models().values():
        if entry["sha256"] in said:
            return Origin(entry["id"], entry["licence"].lower())
    matter = _front_matter(_text(place / "README.md"))
    base, licence = (_first(matter.get(key)) for key in ("base_model", "license"))
    for part in place.absolute().parts:
        if cached := CACHED.fullmatch(part):
            base = "/".join(filter(None, cached.groups()))
    return Origin(base if ID.fullmatch(base) else "", licence)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _front_matter(page: str) -> dict[str, Any]:
    """Return the YAML between the first two lines of three hyphens; nothing of a damaged one."""
    import yaml

    parts = re.split(r"^---[ \t]*$", page, maxsplit=2, flags=re.M)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _first(value: object) -> str:
    """Return a name, or the first of several."""
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else ""
