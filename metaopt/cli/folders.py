"""Where YAML files and the Python files next to them are looked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

VARIABLE = "METAOPT_CONFIG_DIR"

_users: list[Path] = []
_given: list[str] = []


def shipped() -> Path:
    """Return the folder of the shipped YAML files, in an installation or in a source tree."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def of_user() -> list[Path]:
    """Return the user's config folders: those of `--config-dir`."""
    return list(_users)


def given() -> list[str]:
    """Return the user's config folders as they were given, for commands that are printed."""
    return list(_given)


def use(arguments: Sequence[str]) -> list[str]:
    """Take `--config-dir` out of the arguments; make its YAML and the Python next to it available.

    The working folder and the parent of the config folder come first on the import path, of this
    process and, by PYTHONPATH, of those that launchers start. Without the flag, the environment
    variable METAOPT_CONFIG_DIR names the folder.

    Returns:
        The other arguments.

    Raises:
        ValueError: the folder is missing, or a file in it is not YAML.
    """
    parser = argparse.ArgumentParser("metaopt", add_help=False, allow_abbrev=False)
    parser.add_argument("-cd", "--config-dir", action="append", metavar="FOLDER", default=[])
    flags, rest = parser.parse_known_args(arguments)
    _users.clear()
    _given.clear()
    for name in flags.config_dir or filter(None, [os.environ.get(VARIABLE)]):
        if not Path(name).is_dir():
            flag = "--config-dir" if flags.config_dir else VARIABLE
            raise ValueError(f"{flag}={name} is not a folder.")
        for path in sorted(Path(name).rglob("*.yaml")):
            _check_yaml(path)
        _users.append(Path(name).resolve())
        _given.append(name)
    _make_importable([str(path) for f in _users for path in (Path.cwd(), f.parent)])
    return rest


def _check_yaml(path: Path) -> None:
    """Raise a `ValueError` for a file that hydra cannot read, or would read as something else."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):  # hydra would overlook `# @package` behind it
            raise ValueError(f"{path} begins with a byte order mark; save it as UTF-8 without one.")
        if not text.strip():
            raise ValueError(f"{path} is empty; write its keys, or delete it.")
        yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except yaml.YAMLError as error:
        lines = " ".join(line.strip() for line in str(error).splitlines())
        raise ValueError(f"{path} is not YAML: {lines}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def _make_importable(paths: Sequence[str]) -> None:
    for path in reversed(paths):
        if path not in sys.path:
            sys.path.insert(0, path)
    inherited = os.environ.get("PYTHONPATH")
    if paths:
        known = inherited.split(os.pathsep) if inherited else []
        added = [path for path in dict.fromkeys(paths) if path not in known]
        os.environ["PYTHONPATH"] = os.pathsep.join([*added, *known])


def searched() -> list[str]:
    """Return the folders on the import path that are not Python's own."""
    prefixes = tuple({sys.prefix, sys.base_prefix})
    paths = (str(Path(path or ".").resolve()) for path in sys.path)
    return [p for p in dict.fromkeys(paths) if not p.startswith(prefixes) and Path(p).is_dir()]


def groups() -> dict[str, dict[str, str]]:
    """Return {group: {option: its line of help}} of the shipped and the user's folders."""
    merged: dict[str, dict[str, str]] = {}
    for root in (shipped(), *_users):
        for path in sorted(root.rglob("*.yaml")):
            group, _, option = path.relative_to(root).with_suffix("").as_posix().partition("/")
            if option and group not in ("local", "hydra"):
                merged.setdefault(group, {})[option] = help_of(path)
    return merged


def file_of(group: str, option: str) -> Path | None:
    """Return the YAML file of an option, the user's before the shipped."""
    paths = (root / group / f"{option}.yaml" for root in (*reversed(_users), shipped()))
    return next((path for path in paths if path.is_file()), None)


def help_of(path: Path) -> str:
    """Return the first comment of a YAML file that is not a directive such as `@package`."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if (text := line.lstrip("# ").strip()) and not text.startswith("@"):
            return text
    return ""
