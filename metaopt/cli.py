"""The command line; the only module that imports hydra."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metaopt import arguments as schema
from metaopt import checkpoint, options, provenance
from metaopt.arguments import ConfigError, check_call, nearest
from metaopt.explain import report
from metaopt.progress import Silent, watcher
from metaopt.runner import Interrupted, Run, prepare_torch, result_of
from metaopt.testing import check_report as hypergradients

CONFIG = "train"
WORST = 1e12
"""What a failed or not finite cell of a sweep hands to the sweeper, which cannot take a NaN."""

PARTS = ("engine", "problem", "estimator", "optimizer", "tracker")
CHECK_HELP = """metaopt-check problem=<name> [key=value ...]

Print how far each estimator is from the exact hypergradient of a differentiable problem, with the
seconds and the memory of a call. Keys are those of metaopt, and

  estimator=a,b    the estimators to check; all of configs/estimator by default
  steps=N          most inner steps to the start, and through the reference
  warm_steps=N     outer steps before the rows marked warm (20)
  json=FILE        write the rows to a file as well"""

SETTINGS = (
    "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "figures",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Args:
        status: "computed", "complete" (it was before), or "failed".
        folder: the run's folder.
        objective: the metric for a sweeper; lower is better unless its direction says otherwise.
    """

    status: str
    folder: Path
    objective: float = WORST

    def __float__(self) -> float:
        return self.objective


def main() -> None:
    """Run the command line of `metaopt`."""
    _guard(lambda: _dispatch(sys.argv[1:]))


def check() -> None:
    """Run the command line of `metaopt-check`."""
    _guard(lambda: _check(sys.argv[1:]))


def _check(arguments: list[str]) -> int:
    """Compare estimators with the exact hypergradient of the problem that the overrides name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(CHECK_HELP)
        return 0
    split = [a.partition("=") for a in arguments]
    own = {k: v for k, _, v in split if k in ("steps", "warm_steps", "json")}
    own.setdefault("warm_steps", "20")
    chosen = [v for k, _, v in split if k == "estimator"]
    overrides = [a for a in arguments if a.partition("=")[0] not in (*own, "estimator")]
    names = chosen[-1].split(",") if chosen else [*options.groups(options.folder())["estimator"]]
    with composing():
        configs = {n: _composed([*overrides, f"estimator={n}"]) for n in names}
    config = next(iter(configs.values()))
    prepare_torch(config["threads"], config["device"])
    try:
        estimators = {n: instantiate(c["estimator"], _convert_="all") for n, c in configs.items()}
        hypergradients.report(
            instantiate(config["problem"], _convert_="all"), estimators,
            steps=_count(own, "steps"), warm_steps=_count(own, "warm_steps") or 0,
            key=config["seed"],
            optimizer=lambda: instantiate(config["optimizer"], _convert_="all"),
            json_file=Path(own["json"]) if "json" in own else None,
        )  # fmt: skip
    except InstantiationException as error:
        raise _cause(error) from None
    return 0


def _count(own: Mapping[str, str], name: str) -> int | None:
    if name not in own:
        return None
    if not own[name].isdigit():
        raise ConfigError(f"{name} must be a whole number >= 0; got {own[name]!r}.")
    return int(own[name])


def _composed(overrides: list[str]) -> dict[str, Any]:
    """Return the problem, estimator and optimizer of a config, and how torch is to run."""
    config: Any = compose(CONFIG, overrides)
    keys = ("problem", "estimator", "optimizer", "threads", "device", "seed")
    parts: Any = OmegaConf.create({k: config[k] for k in keys})
    parts._set_parent(config)
    resolved: Any = OmegaConf.to_container(parts, resolve=True, throw_on_missing=True)
    schema.check(resolved)
    return resolved


def _guard(command: Any) -> None:
    """Run a command and exit with its status, or with a message when it fails."""
    try:
        status = command()
    except KeyboardInterrupt:
        status = 130
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        report(ConfigError(_composition(error)) if not isinstance(error, ConfigError) else error)
        status = 1
    except Exception as error:
        report(error)
        status = 1
    sys.exit(status)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        options.show(options.folder())
        return 0
    resumed = [a.partition("=")[2] for a in arguments if a.startswith("resume=")]
    if resumed:
        return _resume(Path(resumed[0]), [a for a in arguments if not a.startswith("resume=")])
    sweep = {"-m", "--multirun"} & set(arguments)
    overrides = [a for a in arguments if a not in ("-m", "--multirun")]
    if any(a.startswith("-") for a in overrides):
        _hydra_itself()
        return 0
    with composing():
        loaded: Any = GlobalHydra.instance().hydra
        if sweep or loaded.get_mode(CONFIG, overrides) == RunMode.MULTIRUN:
            started = time.monotonic()
            returned = loaded.multirun(CONFIG, job, [*overrides, "hydra.mode=MULTIRUN"])
            return _summary(returned, time.monotonic() - started)
        outcome = loaded.run(CONFIG, job, overrides).return_value
    return int(outcome.status == "failed")


def _hydra_itself() -> None:
    """Hand flags such as `--cfg job`, `--info` and `--config-dir` to hydra's own command line."""
    hydra.main(config_path=str(options.folder()), config_name=CONFIG, version_base="1.3")(job)()


@contextmanager
def composing() -> Iterator[None]:
    """Make the shipped configuration the one that `hydra.compose` reads."""
    folder = str(options.folder())
    with initialize_config_dir(config_dir=folder, job_name="metaopt", version_base="1.3"):
        yield


def job(config: DictConfig) -> Outcome:
    """Run one composed config in the folder that hydra made for it; errors end up in messages."""
    state: Any = HydraConfig.get()
    folder = Path(state.runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    sweeping = state.mode == RunMode.MULTIRUN
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        direction = str(OmegaConf.select(state, "sweeper.direction"))
        return _run(folder, resolved, list(state.overrides.task), sweeping, direction)
    except Interrupted as stop:
        print(f"Stopped: {stop}. Continue with\n  metaopt resume={folder}", file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    except Exception as error:
        report(_cause(error), folder)
        _remove_empty(folder)
        return Outcome("failed", folder)


def _run(
    folder: Path, config: dict[str, Any], overrides: Sequence[str], sweeping: bool, direction: str
) -> Outcome:
    _refuse_foreign(folder, config)
    result = result_of(folder)
    if result is not None:
        _write_config(folder, config)
        print(f"{folder}: already complete; nothing computed.")
        return Outcome("complete", folder, _objective(config, result, direction))
    run = _build(folder, config, overrides, sweeping)
    _write_config(folder, config)
    started = time.monotonic()
    result = run()
    (folder / "error.log").unlink(missing_ok=True)
    _conclude(folder, result, time.monotonic() - started, sweeping)
    return Outcome("computed", folder, _objective(config, result, direction))


def _refuse_foreign(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` if the folder holds the work of another config; name what differs."""
    path = folder / "config.yaml"
    if not path.exists() or not (checkpoint.steps(folder / "checkpoints") or result_of(folder)):
        return
    before = yaml.safe_load(path.read_text())
    if provenance.config_hash(before) != provenance.config_hash(config):
        changed = "\n  ".join(provenance.differences(before, config)[:8])
        raise ConfigError(
            f"{folder} holds a run of another config:\n  {changed}\n"
            f"Delete the folder to compute it anew, or set name=<another name>."
        )


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the config in the folder; labels may have changed since the last time."""
    path, text = folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False)
    if not path.exists() or path.read_text() != text:
        checkpoint.write_text(path, text)


def _build(folder: Path, config: dict[str, Any], overrides: Sequence[str], sweeping: bool) -> Run:
    """Make the run that a config describes.

    Raises:
        ConfigError: the config cannot be built; says why.
    """
    settings = {name: config[name] for name in SETTINGS}
    schema.check(config)
    check_call(Run, settings)
    check_call(prepare_torch, config)
    watch = watcher if not sweeping or sys.stderr.isatty() else Silent
    try:
        prepare_torch(config["threads"], config["device"])
        made = {k: instantiate(config[k], _convert_="all") for k in PARTS}
        engine = made["engine"](made["problem"], made["estimator"], made["optimizer"])
        return Run(engine, folder, config, made["tracker"], overrides, **settings, watch=watch)
    except (InstantiationException, ValueError) as error:
        cause = _cause(error)
        raise (ConfigError(str(cause)) if isinstance(cause, ValueError) else cause) from error


def _resume(folder: Path, rest: Sequence[str]) -> int:
    if rest:
        raise ConfigError(
            f"resume= continues a run as it was started; drop {' '.join(rest)}, "
            f"or start a new run with it."
        )
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} is no run's folder: {path} is missing.")
    try:
        outcome = _run(folder, yaml.safe_load(path.read_text()), [], False, "minimize")
    except Interrupted as stop:
        print(f"Stopped: {stop}. Continue with\n  metaopt resume={folder}", file=sys.stderr)
        return 128 + stop.signum
    except Exception as error:
        report(_cause(error), folder)
        return 1
    return int(outcome.status == "failed")


def _objective(config: Mapping[str, Any], result: Mapping[str, Any], direction: str) -> float:
    name = config["objective"]
    worst = -WORST if "max" in direction.lower() else WORST
    if name is None:
        return worst
    if name not in result["metrics"]:
        raise ConfigError(
            f"objective={name} is no metric of this run.{nearest(name, result['metrics'])} "
            f"There are {', '.join(result['metrics'])}."
        )
    value = result["metrics"][name]
    return worst if value is None else float(value)


def _conclude(folder: Path, result: Mapping[str, Any], seconds: float, sweeping: bool) -> None:
    """Print the final metrics, the folder and the next command."""
    metrics = {k: v for k, v in result["metrics"].items() if v is not None}
    if sweeping:
        shown = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k.startswith("eval/"))
        print(f"{folder}: {shown}  ({seconds:.1f} s)", flush=True)
        return
    for name, value in metrics.items():
        print(f"{name:<28}{value:.6g}")
    if result["stopped"]:
        print(f"stopped early: the limit on {result['stopped']} is reached")
    print(f"{result['outer_steps']} outer steps in {seconds:.1f} s; everything is in {folder}")
    print(f"Next: metaopt-report {folder}")


def _summary(returned: Any, seconds: float) -> int:
    """Say how many cells of a sweep were computed; return the exit code."""
    if not isinstance(returned, list):  # sweepers of plugins return nothing
        return 0
    cells = [r.return_value for batch in returned for r in batch]
    count = {s: sum(c.status == s for c in cells) for s in ("computed", "complete", "failed")}
    if count["complete"] == len(cells):
        print(f"{len(cells)} of {len(cells)} cells were already complete; nothing computed.")
    else:
        print(
            f"{len(cells)} cells: {count['computed']} computed in {seconds:.0f} s, "
            f"{count['complete']} were already complete, {count['failed']} failed."
        )
    if count["failed"]:
        print("The same command computes what is missing.")
    print(f"Next: metaopt-report {cells[0].folder.parent}")
    return int(count["failed"] > 0)


def _cause(error: BaseException) -> BaseException:
    """Return the error inside hydra's, or a `ConfigError` for one of hydra's own."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return ConfigError(_composition(error))
    return error


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _composition(error: BaseException) -> str:
    """Return a message about a config that could not be composed."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    missing = re.search(r"Could not find '([^']+)'", text)
    if unknown:
        return f"There is no key {unknown[1]!r}.{_suggest(unknown[1])} `metaopt --help` lists them."
    if missing and isinstance(error, MissingConfigException):
        group, _, option = missing[1].partition("/")
        known = options.groups(options.folder()).get(group, {})
        listed = ", ".join(known) or "none"
        return f"There is no {group}={option}.{nearest(option, known)} Options: {listed}."
    lines = [line.strip() for line in text.splitlines() if not line.startswith("See http")]
    return "\n  ".join(line for line in lines if line)


def _suggest(key: str) -> str:
    """Return " Did you mean ...?" for the nearest key of the config that was to be changed."""
    overrides = [a for a in sys.argv[1:] if "=" in a and not a.startswith((f"{key}=", "-"))]
    known = [*options.groups(options.folder())]
    try:
        with composing():
            config: Any = OmegaConf.to_container(compose(CONFIG, overrides))
    except (HydraException, OmegaConfBaseException):
        known += [name for name, _, _ in options.keys(options.folder())]
    else:
        known += list(dict(provenance.flatten(config)))
    return nearest(key, known)


def cell(name: str) -> str:
    """Return the folder's name of a sweep's cell: its overrides, with a hash where they are long.

    Characters other than letters, digits and `_ . = , + - @` become `-`. Two cells that meet in one
    folder all the same are told apart by the hashes of their configs, and the second is refused.
    """
    plain = re.sub(r"[^\w.=,+@-]", "-", name) or "default"
    if len(plain) <= 120:
        return plain
    return f"{plain[:100]}-{sha256(name.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("cell", cell, replace=True)

if __name__ == "__main__":
    main()
