"""`metaopt-check --retrain`: does what is said of training examples predict retraining?"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from metaopt.cli.composing import composing
from metaopt.cli.problem_config import composed, made
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import loop_of
from metaopt.estimators.inner_run import require_gradients
from metaopt.files.errors import ConfigError
from metaopt.report.table import Table
from metaopt.runs.python import load
from metaopt.runs.torch_settings import prepare_torch
from metaopt.testing.counterfactual import GRADIENTS, WEIGHTS, Counterfactual
from metaopt.testing.retraining_check import check_retraining

USAGE = """metaopt-check [--config-dir CONF] problem=<name> [key=value ...] --retrain N [options]

Leave subsets of the training examples out, train again, and compare the change of the meta-loss
with what the gradient of the examples' weights through the whole training predicts (the linear
datamodeling score). Start, batches and masks stay. The exit code is 1 where neither is to be
trusted. The problem must say what its training examples are, as domain_reweighting does.

  --retrain N      retrainings, 20 at least; claims of 0.98 need 100
  --leave Q        share of the examples that each leaves out (0.01); 0.5 keeps random halves
  --subsets KIND   disjoint, random, or auto: disjoint where the examples suffice (auto)
  --steps N        inner steps of a training; by default those of the whole run
  --weights RUN    instead of problem=, a run's folder: its learned weights are compared as well
  --csv FILE       write each subset with its actual and predicted changes, such as lds.csv
  --json FILE      write the scores"""

ALIASES = ("json", "csv", "steps")
"""Options that may be written as keys, like those of the other check."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"metaopt-check: {message}.\n\n{USAGE}")


def asked(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for retraining."""
    return any(a.partition("=")[0] == "--retrain" for a in arguments)


def main(arguments: Sequence[str]) -> int:
    """Compare predicted with actual effects of leaving out examples, and print the scores."""
    if list(arguments) == ["--retrain"]:
        print(USAGE)
        return 0
    parser = _Parser("metaopt-check", add_help=False, allow_abbrev=False)
    parser.add_argument("--retrain", type=int, required=True)
    parser.add_argument("--leave", type=float, default=0.01)
    parser.add_argument("--subsets", choices=("auto", "disjoint", "random"), default="auto")
    parser.add_argument("--steps", type=int)
    for name in ("--weights", "--csv", "--json"):
        parser.add_argument(name, type=Path)
    flags = [f"--{a}" if a.partition("=")[0] in ALIASES else a for a in arguments]
    options, overrides = parser.parse_known_args(flags)
    unknown = [a for a in overrides if a.startswith("-")]
    if unknown:
        parser.error(f"there is no option {unknown[0]}")
    for path in (options.csv, options.json):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{path} is a file in a folder that is not there.")
    attributions = {}
    config: Mapping[str, Any]
    if options.weights is None:
        with composing():
            config = composed(overrides)
            problem = made(config, "metaopt-check")
    else:
        problem, config, weights = _of_run(options.weights, overrides)
        attributions[WEIGHTS] = weights - 1
    steps = options.steps
    if steps is None:
        steps = config["inner_steps"] * (config["outer_steps"] if problem.warm_start else 1)
    result = check_retraining(
        problem, steps, retrainings=options.retrain, leave=options.leave, subsets=options.subsets,
        attributions=attributions, key=config["seed"], say=lambda line: print(line, flush=True),
    )  # fmt: skip
    show(result)
    if options.csv is not None:
        write(result, options.csv)
    if options.json is not None:
        options.json.write_text(json.dumps(result.numbers(), indent=2) + "\n")
    return int(result.failed)


def _of_run(
    folder: Path, overrides: Sequence[str]
) -> tuple[GradientProblem, Mapping[str, Any], Any]:
    """Return the problem, the config and the learned weights of a run."""
    if overrides:
        raise ConfigError(
            f"--weights takes the problem of the run; drop {' '.join(overrides)}, or --weights."
        )
    run = load(folder)
    config = run.config
    if config.get("seeds") is not None:
        raise ConfigError(f"{folder} holds several seeds; --weights takes a run of one.")
    prepare_torch(config.get("threads", 1), config.get("device", "cpu"))
    problem = run.problem
    require_gradients(loop_of(problem), "metaopt-check", through_decisions=False)
    learned = getattr(problem, "learned_weights", None)
    if learned is None:
        raise ConfigError(
            f"{type(problem).__name__} has no learned_weights(outer, inner), the weight (n,) of "
            f"each training example; without --weights, problem= compares the gradient alone."
        )
    if "inner_steps" not in config:
        raise ConfigError(f"{folder} was started from Python; say --steps, those of a training.")
    return problem, config, learned(run.outer, run.inner)


def show(result: Counterfactual) -> None:
    """Print the scores and what they mean."""
    rows = [[name, *str(score).split(" ", 1)] for name, score in result.scores.items()]
    print(Table(["attribution", "LDS", "95 % interval"], rows).text())
    print(
        f"F after {result.inner_steps} inner steps: {result.value:.5g}; standard deviation of its "
        f"changes {float(result.changes.std()):.2g}. In {result.dtype}, {result.trainings} "
        f"trainings, {result.seconds:.0f} s."
    )
    if result.never_drawn:
        print(f"In no batch: {result.never_drawn} of {result.examples} examples.")
    if result.note:
        print(f"note: {result.note}.")
    if result.missing:
        print(f"{GRADIENTS}  none: {result.missing}")
    else:
        print(
            f"smoothness  S = {result.smoothness:.2f} over leaving out a subset; the gradient is "
            f"{result.gradient_error:.1e} off differences of the run"
        )
    for verdict in result.verdicts.values():
        print(verdict)


def write(result: Counterfactual, path: Path) -> None:
    """Write a line for each subset: its examples, the actual and the predicted changes of F."""
    names = list(result.effects)
    predicted = [result.predicted(name).tolist() for name in names]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            ["subset", "change", *(f"predicted by {name}" for name in names), "examples"]
        )
        for j, change in enumerate(result.changes.tolist()):
            examples = " ".join(map(str, result.subsets[j].nonzero().flatten().tolist()))
            table.writerow([j, repr(change), *(repr(column[j]) for column in predicted), examples])
