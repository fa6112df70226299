"""What the config in a run's folder may name: a folder from elsewhere runs no code of its own.

A config says which objects to make, so that one from elsewhere could call anything. Allowed are
classes of metaopt and the functions that its own YAML names, optimizers and schedules of
`torch.optim`, modules found through the `--config-dir` given now, and packages that the user names
with `trust=`. What an object is called does not count, but where it is defined: `metaopt.runs.run`
has an attribute `os`, and `metaopt.runs.run.os.system` is `posix.system`.
"""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hydra._internal.utils import _locate
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metaopt.cli import folders
from metaopt.files.errors import FolderError, listed

PACKAGES = (
    "backends", "data", "engine", "estimators", "llm", "metrics", "nn", "optimizers", "problems",
)  # fmt: skip
"""Packages of metaopt whose classes a config may name."""

TRACKERS = ("metaopt.runs.tracking.TensorBoard", "metaopt.runs.tracking.Wandb")

LOCATORS = ("get_class", "get_method", "get_object", "get_static_method")
"""Functions of `hydra.utils` that return what their argument names."""


class Refusal(NamedTuple):
    """A value of a config that is run only where the user says so.

    Args:
        key: of the value.
        value: what it names.
        why: what is wrong with it.
        trust: what to name for it to be run, or `None` where nothing helps.
    """

    key: str
    value: Any
    why: str
    trust: str | None = None


def refuse_strange(folder: Path, config: Mapping[str, Any], trust: Sequence[str] = ()) -> None:
    """Raise a `FolderError` if a folder's config names what it may not; none of that is imported.

    Args:
        folder: the run's; no module in it is one of the user's.
        config: the config of the folder, or a part of it.
        trust: packages, and hosts of model servers, that the user names.
    """
    refused = list(_Trusted(folder, trust).refusals(config))
    if refused:
        lines = [f"{x.key}: {x.value} ({x.why})" for x in refused]
        raise FolderError(
            f"The config of {folder} names what is run only where you say so:\n"
            f"{listed(lines, most=12)}\n"
            f"Nothing was run. If you know the code, name its packages (or a server's host) with "
            f"trust=[mylab], in Python trust=['mylab']; of modules next to a config folder of "
            f"yours, the folder with --config-dir FOLDER."
        )


def needed(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return what a command that resumes a run must name as trusted."""
    return sorted({x.trust for x in _Trusted(folder, ()).refusals(config) if x.trust})


class _Trusted:
    def __init__(self, folder: Path, trust: Sequence[str]) -> None:
        self.folder, self.trust = folder.resolve(), tuple(trust)
        users = [place for conf in folders.of_user() for place in (conf.parent, Path.cwd())]
        self.roots = [place.resolve() for place in dict.fromkeys(users)]

    def refusals(self, node: Any, key: str = "") -> Iterator[Refusal]:
        """Yield what is refused in a nested config, or in the part of one under a key."""
        if isinstance(node, Mapping):
            yield from self._of_node(node, key)
            for name, value in node.items():
                at = f"{key}.{name}" if key else str(name)
                yield from self.refusals(value, at)
        elif isinstance(node, (list, tuple)):
            for i, value in enumerate(node):
                yield from self.refusals(value, f"{key}[{i}]")
        elif isinstance(node, str) and "${" in node:
            # Wherever it stands: making objects resolves all of a config, texts included.
            yield Refusal(key, node, "an interpolation, which no resolved config has")

    def _of_node(self, node: Mapping[str, Any], key: str) -> Iterator[Refusal]:
        for name in ("_target_", "_class_"):
            if name in node:
                for word, value in _named_by(node, name):
                    if refusal := self._of_name(value, f"{key}.{word}".lstrip(".")):
                        yield refusal
        if str(node.get("_method_", "")).startswith("_"):
            yield Refusal(f"{key}._method_", node["_method_"], "a private name")
        if "_args_" in node and str(node.get("_target_", "")).startswith("metaopt."):
            yield Refusal(f"{key}._args_", node["_args_"], "arguments without names")
        if host := self._host(node.get("base_url")):
            yield Refusal(f"{key}.base_url", node["base_url"], "a server elsewhere", host)

    def _of_name(self, name: Any, key: str) -> Refusal | None:
        """Return why an object may not be named, or `None` where it may."""
        if not isinstance(name, str) or not re.fullmatch(r"\w+([.:]\w+)*", name):
            return Refusal(key, name, "no name of an object")
        words = re.split("[.:]", name)
        if any(word.startswith("_") for word in words[1:]):
            return Refusal(key, name, "a private name")
        if not self._is_ours(words):
            return Refusal(key, name, "not below metaopt or torch.optim", _package(words))
        try:
            value = pkgutil.resolve_name(name) if ":" in name else _locate(name)
        except Exception as error:  # of any kind, as importing runs the module
            reason = (str(error).splitlines() or [type(error).__name__])[-1]
            return Refusal(key, name, f"it cannot be found: {reason}")
        refused = self._of_object(value)
        return refused and Refusal(key, name, *refused)

    def _of_object(self, value: Any) -> tuple[str, str | None] | None:
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "?")
        if not isinstance(module, str) or not callable(value):
            return "neither a class nor a function", None
        full = f"{module}.{name}"
        if self._named(full) or self._found(full.split(".")):
            return None
        if not self._is_ours(full.split(".")):
            return f"it is {full}", _package(full.split("."))
        if module.startswith("torch."):
            optimizes = inspect.isclass(value) and issubclass(value, (Optimizer, LRScheduler))
            return None if optimizes else ("neither an optimizer nor a schedule", "torch.optim")
        part = any(module.startswith(f"metaopt.{part}.") for part in PACKAGES)
        if (inspect.isclass(value) and part) or full in TRACKERS or _is_shipped(value):
            return None
        return "no part of a problem, an estimator or an optimizer", "metaopt"

    def _is_ours(self, words: Sequence[str]) -> bool:
        """Return whether a dotted name is below a package that may be imported."""
        dotted = ".".join(words)
        shipped = words[0] == "metaopt" or dotted.startswith("torch.optim.")
        return shipped or self._named(dotted) or self._found(words)

    def _named(self, dotted: str) -> bool:
        return any(f"{dotted}.".startswith(f"{package}.") for package in self.trust)

    def _found(self, words: Sequence[str]) -> bool:
        """Return whether a module comes from the folders that `--config-dir` has opened.

        Not the run's own folder, where it is below one of them, and nothing that only looks like a
        package: any folder does, without an `__init__.py`.
        """
        try:
            actual = importlib.util.find_spec(words[0])
        except (ValueError, ImportError):
            return False
        for root in self.roots:
            spec = PathFinder.find_spec(words[0], [str(root)])
            if spec is None or actual is None or not spec.origin or spec.origin != actual.origin:
                continue
            places = [root.joinpath(*words[: i + 1]).resolve() for i in range(len(words))]
            if not any(self.folder in (place, *place.parents) for place in places):
                return True
        return False

    def _host(self, url: Any) -> str | None:
        """Return the host of a model server that is not this machine and not trusted."""
        try:
            host = urlsplit(url).hostname if isinstance(url, str) else None
        except ValueError:
            return str(url)
        local = host is None or host in ("localhost", "127.0.0.1", "::1")
        return None if local or host in self.trust else host


def _named_by(node: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """Return (key, name) of the objects that a node names: its target, or what that looks up."""
    if node[key] not in [f"hydra.utils.{locator}" for locator in LOCATORS]:
        return [(key, node[key])]
    listed = node.get("_args_", [])
    looked_up = [("_args_", x) for x in (listed if isinstance(listed, list) else [listed])]
    if "path" in node:
        looked_up.append(("path", node["path"]))
    return looked_up or [("path", None)]


def _package(words: Sequence[str]) -> str:
    """Return the package to trust for a dotted name; all of torch would be too much."""
    return ".".join(words[:2] if words[0] == "torch" else words[:1])


def _is_shipped(function: Any) -> bool:
    name = getattr(function, "__name__", "")
    return any(_locate(x) is function for x in _shipped() if x.rpartition(".")[2] == name)


@cache
def _shipped() -> frozenset[str]:
    """Return what metaopt's own YAML names."""
    texts = (path.read_text(encoding="utf-8") for path in folders.shipped().rglob("*.yaml"))
    pattern = r"(?:_target_|path): *(metaopt\.[\w.]+)"
    return frozenset(name for text in texts for name in re.findall(pattern, text))
