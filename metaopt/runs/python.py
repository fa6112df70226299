"""The front door in Python: what the command `metaopt` does, as functions.

`run` starts a run, `load` gives a finished or killed one back, `resume` continues or extends it.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.engine import Engine
from metaopt.engine.annotations import check_arguments
from metaopt.engine.protocols import BilevelProblem, Estimator, OuterOptimizer
from metaopt.engine.seeds import seeds_from
from metaopt.files.errors import ConfigError, FolderError
from metaopt.files.lock import refuse_held
from metaopt.files.numbers import or_nan
from metaopt.files.reading import steps
from metaopt.runs.continuing import rest_of
from metaopt.runs.description import from_config, refuse_other, to_config
from metaopt.runs.folder import read_config, started_with
from metaopt.runs.interrupts import Interrupted
from metaopt.runs.progress import announced, checks, watcher
from metaopt.runs.result import Result, read_history, read_result, replicates_of
from metaopt.runs.run import PYTHON, SETTINGS, Run, Service
from metaopt.runs.selection import Keys, Selection
from metaopt.runs.stopping import stop_of


def run(
    problem: BilevelProblem | Sequence[BilevelProblem],
    estimator: Estimator,
    optimizer: OuterOptimizer,
    outer_steps: int,
    seed: int = 0,
    folder: str | Path | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    progress: bool = True,
    limits: Mapping[str, float | None] | None = None,
    log_every: int = 1,
    eval_every: int = 10,
    checkpoint_every: int = 50,
    keep_checkpoints: int = 2,
    figures: bool = True,
    tracker: Service | None = None,
    early_stopping: Keys = None,
    keep_best: Keys = None,
) -> Result:
    """Run a problem to the end and return the result of the run.

    Args:
        problem, estimator, optimizer: the three roles; see `metaopt.engine.protocols`. With
            `seeds`, `problem` may be a list with the problem of each seed.
        outer_steps: number T of outer steps, >= 0.
        seed: the root of all randomness.
        folder: where the run is kept, so that it can be resumed and loaded; it is made, and must
            not hold a run yet. `None` writes nothing.
        seeds: several seeds to train together, or how many from `seed` on. Each has the results of
            a run of its own; `metrics` are their means, `replicates` has each one, and the tensors
            of `outer` and `inner` have an axis of seeds in front.
        progress: whether to show a progress bar (plain lines where there is no terminal).
        limits: largest total cost by unit (`metaopt.engine.budget.UNITS`); `None`, for one unit or
            for all, sets no limit.
        log_every, eval_every, checkpoint_every: outer steps between two records, two evaluations
            on held-out data, two checkpoints; each >= 1.
        keep_checkpoints: how many of the newest checkpoints are kept, >= 1.
        figures: whether to draw figures and write the problem's product at the end.
        tracker: makes a tracker from (folder, config, resume_step), such as
            `functools.partial(metaopt.runs.tracking.Wandb, project="mine")`; needs a folder.
        early_stopping: ends the run when a metric no longer improves, such as
            `{"metric": "eval/test_loss", "patience": 5}`, with `min_delta` and `mode`; see
            `metaopt.runs.selection.EarlyStopping`; the metric alone keeps their defaults.
        keep_best: the metric whose best checkpoint is kept for `load(folder, best=True)`, or
            `{"metric": "eval/score", "mode": "max"}` where its name does not say which way is
            better; needs a folder.

    Raises:
        ValueError: an argument out of range, or roles that do not fit each other.
        FileExistsError: the folder holds a run.
        NonFiniteError: the meta-objective or a hypergradient is not finite.
        KeyboardInterrupt: on SIGINT, after the outer step under way and a checkpoint.

    Example:
        result = metaopt.run(Ridge(), Unroll(inner_steps=10), Descent("adam", lr=0.1), 100)
        result.outer["log_penalty"], result.metrics["eval/test_loss"]
    """
    check_arguments(run, locals())
    settings: dict[str, Any] = dict(zip(
        SETTINGS, (log_every, eval_every, checkpoint_every, keep_checkpoints, figures), strict=True
    ))  # fmt: skip
    if tracker is not None and folder is None:
        raise ValueError("tracker needs a folder; pass folder=<where the run is kept>.")
    config = {
        "name": _kind(problem), "started": PYTHON, "seed": to_config(seed),
        "seeds": None if seeds is None else to_config(seeds_from(seed, seeds)),
        "outer_steps": to_config(outer_steps), "limits": to_config(limits), **to_config(settings),
        "problem": to_config(problem), "estimator": to_config(estimator),
        "optimizer": to_config(optimizer), "tracker": to_config(tracker),
        "early_stopping": to_config(early_stopping), "keep_best": to_config(keep_best),
    }  # fmt: skip
    path = None if folder is None else Path(folder)
    parts = {"problem": problem, "estimator": estimator, "optimizer": optimizer}
    made = _made(path, config, parts, tracker, progress)
    if path is not None:
        _refuse_occupied(path)
        path.mkdir(parents=True, exist_ok=True)
    return _drive(made, config)


def load(folder: str | Path, *, best: bool = False, trust: Sequence[str] = ()) -> Result:
    """Return the result of a run in a folder: of its end, of its last checkpoint, or of its best.

    `problem` of the result is made from the config when it is asked for; nothing else runs code
    that the folder names.

    Args:
        folder: the run's.
        best: the state at the best evaluation, of a run with `keep_best`; what a problem does after
            the last outer step, such as fine-tuning, was not done to it.
        trust: packages whose objects `problem` may be made of, in addition to metaopt's.

    Raises:
        ConfigError: the folder holds no run, one without a checkpoint, or a damaged file, or it
            cannot be read.
    """
    check_arguments(load, locals())
    path = Path(folder)
    try:
        return read_result(path, lambda: _problem_of(path, trust), best)
    except OSError as error:
        place = error.filename or path
        raise FolderError(f"{place} cannot be read: {error.strerror or error}.") from error


def resume(
    folder: str | Path,
    problem: BilevelProblem | Sequence[BilevelProblem] | None = None,
    outer_steps: int | None = None,
    *,
    estimator: Estimator | None = None,
    optimizer: OuterOptimizer | None = None,
    tracker: Service | None = None,
    progress: bool = True,
    trust: Sequence[str] = (),
    patience: int | None = None,
) -> Result:
    """Continue a run, or extend a finished one, and return the result of the run.

    The numbers are those of a run that was never interrupted, to the bit. What the run's config
    has computed from the number of outer steps, such as the length of a schedule, stays.

    Args:
        folder: the run's.
        problem: the problem it was started with, where the folder cannot make it again.
        outer_steps: the new number of outer steps, or `None` for that of the config.
        estimator, optimizer: the same.
        tracker: see `run`; of a run that was started from Python.
        progress: see `run`.
        trust: packages whose objects the folder's config may name, in addition to metaopt's and
            the optimizers of `torch.optim`: a folder from elsewhere runs no code unasked.
        patience: more of it for a run with `early_stopping`, which so goes on where that has ended
            it.

    Raises:
        ConfigError: the folder holds no run, its config.yaml was edited since the run was started,
            names code that is not trusted, or is in use by another process; a part must be
            passed, or is another one; a file is damaged.
        ValueError: `outer_steps` or `patience` is below what the run has taken or had.
    """
    check_arguments(resume, locals())
    path = Path(folder)
    config, done = rest_of(path, outer_steps, patience)
    given = {"problem": problem, "estimator": estimator, "optimizer": optimizer}
    if config.get("started") == PYTHON:
        parts = {name: _part(name, part, config, path, trust) for name, part in given.items()}
    else:
        parts = {name: part for name, part in given.items() if part is not None}
    if done:
        return load(path, trust=trust)
    if config.get("started") != PYTHON:
        _refuse_strange(path, config, trust)
    return _drive(_made(path, config, parts, tracker, progress), config)


def _drive(made: Run, config: Mapping[str, Any]) -> Result:
    """Run to the end; a run in a folder is then read as `load` reads it."""
    engine, folder = made.engine, made.folder
    try:
        result = made()
    except Interrupted as stop:
        advice = "nothing was saved, since there is no folder"
        if folder is not None:
            advice = f'continue with metaopt.resume("{folder}")'
        if stop.signum == signal.SIGTERM:
            raise SystemExit(f"{stop}; {advice}") from stop
        raise KeyboardInterrupt(f"{stop}; {advice}") from stop
    metrics = {k: or_nan(v) for k, v in result["metrics"].items()}
    return Result(
        engine.optimizer.solution, engine.inner, metrics,
        made.history if folder is None else read_history(folder), config, result["budget"],
        result["outer_steps"], stopped=stop_of(result), delivered=made.delivered, folder=folder,
        make_problem=lambda: engine.problem, replicates=replicates_of(result),
    )  # fmt: skip


def _refuse_occupied(folder: Path) -> None:
    if (folder / "config.yaml").exists() or steps(folder / "checkpoints"):
        raise FileExistsError(
            f'{folder} holds a run; metaopt.resume("{folder}", ...) continues it and '
            f'metaopt.load("{folder}") reads it. Choose another folder for a new run.'
        )


def _kind(problem: Any) -> str:
    first = problem[0] if isinstance(problem, (list, tuple)) and problem else problem
    return type(first).__name__


def _part(
    name: str, part: Any, config: Mapping[str, Any], folder: Path, trust: Sequence[str]
) -> Any:
    """Return a role of a run that was started from Python: as passed, or as recorded."""
    recorded = config[name]
    if part is None:
        try:
            _refuse_strange(folder, {name: recorded}, trust)
            return from_config(recorded, name)
        except ConfigError as error:
            first = recorded[0] if isinstance(recorded, list) else recorded
            kind = str(first.get("_class_", "")).rpartition(":")[2]
            raise ConfigError(
                f"{folder} was started from Python; pass the {name} that it was started with: "
                f'metaopt.resume("{folder}", {name}={kind}(...)). It cannot be made again: {error}'
            ) from error
    refuse_other(folder, name, recorded, part)
    return part


def _made(
    folder: Path | None,
    config: dict[str, Any],
    parts: Mapping[str, Any],
    tracker: Service | None,
    progress: bool,
) -> Run:
    """Make a run of its config and its roles; of a run of the command, the roles to replace."""
    watch = watcher if progress else None
    if folder is not None:
        refuse_held(folder)
    if folder is None or config.get("started") == PYTHON:
        with announced(checks(parts["problem"], parts["estimator"]), progress):
            engine = Engine(
                **parts,
                outer_steps=config["outer_steps"],
                seed=config["seed"],
                seeds=config["seeds"],
                limits=config["limits"],
            )
        settings = {name: config[name] for name in SETTINGS}
        selection = Selection(config.get("early_stopping"), config.get("keep_best"))
        return Run(engine, folder, config, tracker, **settings, watch=watch, selection=selection)
    from metaopt.cli.build import build

    return build(folder, config, watch=watch, given=parts)


def _problem_of(folder: Path, trust: Sequence[str]) -> Any:
    config = started_with(folder) or read_config(folder)
    _refuse_strange(folder, {"problem": config["problem"]}, trust)
    if config.get("started") == PYTHON:
        return from_config(config["problem"], "problem")
    from metaopt.cli.composing import parts

    return parts(config, ())["problem"]


def _refuse_strange(folder: Path, config: Mapping[str, Any], trust: Sequence[str]) -> None:
    from metaopt.cli.trust import refuse_strange  # it imports hydra

    refuse_strange(folder, config, trust)
