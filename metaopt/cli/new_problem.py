"""The command `metaopt-new NAME`: a problem of your own to start from."""

from __future__ import annotations

import argparse
import keyword
from collections.abc import Sequence
from importlib import resources, util
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Write a problem, its YAML and its test in the current folder; return the exit code.

    Raises:
        ValueError: the name cannot be a module's, or a file is there already or cannot be written.
    """
    options = _parser().parse_args(arguments)
    name = options.name
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ValueError(f"NAME becomes a module: lower-case letters, digits and _; got {name!r}.")
    if util.find_spec(name) is not None and not Path(f"{name}.py").exists():
        raise ValueError(f"There is a package {name!r} already; choose another name.")
    kind = "black_box" if options.black_box else "gradient"
    files = {
        Path(f"{name}.py"): f"{kind}.py.txt",
        Path("conf", "problem", f"{name}.yaml"): f"{kind}.yaml.txt",
        Path(f"test_{name}.py"): "test.py.txt",
    }
    for path in files:
        if path.exists():
            raise ValueError(f"{path} is there already; nothing was written.")
        for folder in path.parents:
            if folder.exists() and not folder.is_dir():
                raise ValueError(
                    f"{folder} is a file, and a folder is needed; nothing was written."
                )
    for path, template in files.items():
        text = (resources.files("metaopt.cli") / "template" / template).read_text(encoding="utf-8")
        title = "".join(word.capitalize() for word in name.split("_"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("CLASS", title).replace("NAME", name))
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written in {Path.cwd()} ({error.strerror}). Run metaopt-new in "
                "a folder that you may write to."
            ) from error
        print(f"wrote {path}")
    commands = {f"metaopt --config-dir conf problem={name} debug=tiny": "a run of seconds"}
    if not options.black_box:  # it has none to check
        commands[f"metaopt-check --config-dir conf problem={name}"] = "its hypergradients"
    commands[f"pytest test_{name}.py"] = "what a problem promises"
    width = max(map(len, commands))
    print("Next:", *(f"  {c:<{width}}   # {text}" for c, text in commands.items()), sep="\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "metaopt-new",
        description="Write NAME.py, conf/problem/NAME.yaml and test_NAME.py in this folder: a "
        "small problem that runs, with a comment on each line to change.",
    )
    parser.add_argument("name", metavar="NAME", help="name of the problem and of its module")
    parser.add_argument(
        "--black-box", action="store_true", help="nothing has a gradient: a string, by search"
    )
    return parser
