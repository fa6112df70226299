"""What to answer to a key, a group or an option that cannot be: where it lives, or the nearest."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from metaopt.cli import folders
from metaopt.cli.verbs import VERBS
from metaopt.files.errors import nearest


def unknown_option(group: str, option: str, known: Iterable[str]) -> str:
    """Return what to say to `group=option`, with the nearest three options."""
    options = list(known)
    last = option.rpartition("/")[2]
    same = [name for name in options if name.rpartition("/")[2] == last]
    by_end = {name.rpartition("/")[2]: name for name in options}
    close = difflib.get_close_matches(option, options, n=3, cutoff=0.3)
    close += [by_end[end] for end in difflib.get_close_matches(last, by_end, n=3, cutoff=0.5)]
    three = list(dict.fromkeys([*same, *close]))[:3] or options[:3]
    start = f"There is no {group}={option}."
    if not options:
        return f"{start} There is no group {group}; `metaopt --help` lists them."
    return f"{start} The nearest: {', '.join(three)}. `metaopt --help {group}` lists all."


LAUNCHERS = {
    "joblib": "parallel", "submitit_local": "launch", "submitit_slurm": "launch", "ray": "ray"
}  # fmt: skip
"""The extra that a launcher of hydra comes with."""


def no_launcher(name: str) -> str:
    """Return what to say to `hydra/launcher=name` where there is none: the extra, or the names."""
    if extra := LAUNCHERS.get(name):
        return (
            f"hydra/launcher={name} comes with the extra {extra}, which is not installed. Run "
            f"`pip install -e '.[{extra}]'`."
        )
    return f"There is no hydra/launcher={name}. Choose one of basic, {', '.join(LAUNCHERS)}."


def unreadable(override: str, why: str) -> str:
    """Return what to say to a value that Hydra's grammar does not read, as it stands."""
    key, _, value = override.partition("=")
    inner = value.strip("\"'").replace('"', "'")
    reason = "" if why.startswith("Lexer") else f" ({why})"  # a class of Hydra's
    return (
        f"{override} cannot be read{reason}. Close what is open; a text with any of = , ( ) [ ] "
        f"{{ }} needs quotes within those of the shell: '{key}=\"{inner}\"'."
    )


def no_option(overrides: Iterable[str]) -> str:
    """Return what to say to a group whose value is not a text, such as `estimator=null`."""
    for key, _, value in (override.partition("=") for override in overrides):
        group = key.lstrip("+").partition("@")[0]
        if group in folders.groups() and value not in folders.groups()[group]:
            return f"There is no {key}={value}. `metaopt --help {group}` lists all options."
    return "An option of a group must be a name."


def without_value(word: str) -> str:
    """Return what to say to an argument without `=`: a verb or an option that it may stand for."""
    start = f"{word!r} is not a command, and an argument of a run is KEY=VALUE."
    groups = folders.groups()
    places = [group for group in ("problem", *groups) if word in groups[group]]
    if places:
        return f"{start} Did you mean {places[0]}={word}?"
    known = {option: f"problem={option}" for option in groups["problem"]}
    known |= {verb: verb for verb in VERBS}
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"{start} Did you mean {known[close[0]]}?" if close else f"{start} See `metaopt --help`."


def foreign_method(choices: Mapping[str, Any]) -> str:
    """Return what to add to a wrong argument where the method is another problem's, or nothing."""
    method, problem = choices.get("method"), str(choices.get("problem"))
    path = folders.file_of("method", method) if method else None
    text = path.read_text(encoding="utf-8") if path else ""
    made_for = re.search(r"^ *- override /problem: *(\S+)", text, flags=re.M)
    family = made_for[1] if made_for else str(method).partition("/")[0]
    if path is None or family.partition("/")[0] == problem.partition("/")[0]:
        return ""
    if family not in folders.groups()["problem"]:
        return ""
    return (
        f"\nmethod={method} is one of problem={family}: drop problem={problem}, or choose a method "
        "of it (`metaopt --help method`)."
    )


def unknown_key(key: str, overrides: Iterable[str]) -> str:
    """Return what to say to a key that the composed config does not have.

    Args:
        key: what was given, such as `lr`, `estimater`, or `data@problem.data`.
        overrides: the other overrides, which say what was composed.
    """
    groups = folders.groups()
    group = key.partition("@")[0]
    if key in ("launcher", "sweeper"):
        return f"There is no key {key!r}. It is hydra/{key}=NAME."
    config, choices = _composed([o for o in overrides if _key(o) != key])
    place, _, last = key.rpartition(".")
    if place.split(".")[0] == "hydra":
        known = [name for name in config if name.startswith(f"{place}.")]
        return f"There is no key {key!r}.{nearest(key, known)} `metaopt --cfg hydra` shows them."
    config = [name for name in config if not name.startswith("hydra.")]
    if group in groups:
        return _misplaced_group(key, group, choices)
    elsewhere = [name for name in config if name.endswith(f".{key}")]
    start = f"There is no key {key!r}."
    if elsewhere:
        more = f" and {len(elsewhere) - 3} more" if len(elsewhere) > 3 else ""
        return f"{start} It is {' or '.join(elsewhere[:3])}{more}."
    if other := _other_options(key, choices):
        return f"{start} {other}"
    same = [name for name in config if name.rpartition(".")[2] == last and name != key]
    if same and "." in key:
        return f"{start} It is {' or '.join(same[:3])}."
    return f"{start}{nearest(key, [*groups, *config])} `metaopt --help train` lists those of a run."


def _other_options(key: str, choices: Mapping[str, Any]) -> str:
    """Return which other option of the group that fills a key's place has the key, or nothing."""
    for place, chosen in choices.items():
        group, _, package = place.partition("@")
        if not package or not key.startswith(f"{package}.") or group not in folders.groups():
            continue
        name = key.removeprefix(f"{package}.").partition(".")[0]
        matching = [o for o in folders.groups()[group] if o != chosen and _states(group, o, name)]
        family = str(chosen).rpartition("/")[0]
        matching = [o for o in matching if o.rpartition("/")[0] == family] or matching
        if matching:
            options = " or ".join(f"{place}={option}" for option in matching[:3])
            return f"{place}={chosen} has none; {options} has."
    return ""


def _states(group: str, option: str, name: str) -> bool:
    path = folders.file_of(group, option)
    text = "" if path is None else path.read_text(encoding="utf-8")
    return re.search(rf"^{re.escape(name)}:", text, flags=re.M) is not None


def _misplaced_group(key: str, group: str, choices: Mapping[str, Any]) -> str:
    """Return where a group is chosen in the composed config."""
    places = [name for name in choices if name.partition("@")[0] == group]
    problem = choices.get("problem")
    if places:
        here = " or ".join(f"{name}=OPTION" for name in places)
        return f"There is no place {key!r} in problem={problem}. Choose a {group} with {here}."
    if problem is None:
        return f"{key}= needs a problem; choose one with problem=NAME."
    return f"problem={problem} takes no option of the group {group}."


def _composed(overrides: list[str]) -> tuple[list[str], Mapping[str, Any]]:
    """Return the keys of the config that the overrides compose to, and its choices of options."""
    from hydra import compose
    from omegaconf import OmegaConf

    from metaopt.cli.composing import COMPOSITION
    from metaopt.cli.loading import CONFIG, composing
    from metaopt.runs import configs

    telling = ("problem", "experiment", "hydra/launcher", "hydra/sweeper")
    for chosen in (overrides, [o for o in overrides if _key(o) in telling]):
        try:
            with composing():
                config: Any = compose(CONFIG, chosen, return_hydra_config=True)
        except COMPOSITION:
            continue
        choices = dict(config.hydra.runtime.choices)
        plain: Any = OmegaConf.to_container(config)
        return list(dict(configs.flatten(plain))), choices
    names = (folders.shipped() / "train.yaml").read_text(encoding="utf-8")
    return re.findall(r"^(\w+): ", names, flags=re.M), {}


def given() -> list[str]:
    """Return the overrides of the command line."""
    return [a for a in sys.argv[1:] if "=" in a and not a.startswith("-")]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
