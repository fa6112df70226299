"""`metaopt-check --retrain`: does what is said of training examples predict retraining?"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from metaopt.cli.loading import composing
from metaopt.cli.problem_config import composed, made
from metaopt.cli.retrain_runs import grouped, read_runs, whole_steps
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.files.errors import ConfigError
from metaopt.report.table import Table
from metaopt.runs.checks import write_checks
from metaopt.testing.counterfactual import GRADIENTS, WEIGHTS, Counterfactual, Score
from metaopt.testing.retraining_check import check_retraining

USAGE = """metaopt-check [--config-dir CONF] problem=<name> [key=value ...]
              --retrain N [options]

Leave subsets of the training examples out, train again, and compare the change
of the meta-loss with what the gradient of the examples' weights through the
whole training predicts (the linear datamodeling score). Start, batches and
masks stay. The exit code is 1 where neither is to be trusted. The problem must
say what its training examples are, as domain_reweighting does.

  --retrain N      retrainings, 20 at least; claims of 0.98 need 100
  --leave Q        share of the examples that each leaves out (0.01); 0.5 keeps
                   random halves
  --subsets KIND   disjoint, random, or auto: disjoint where the examples
                   suffice (auto)
  --steps N        inner steps of a training; by default those of the whole run
  --weights RUN... instead of problem=, folders of runs or of a sweep: their
                   learned weights are compared; runs of one seed that train
                   alike share the retrainings
  --no-gradient    with --weights: leave out the gradient and the smoothness
  --save           with --weights: write the score into each run's folder, as
                   check/lds of reports
  --csv FILE       write each subset with its actual and predicted changes, such
                   as lds.csv
  --json FILE      write the scores"""

ALIASES = ("json", "csv", "steps")
"""Options that may be written as keys, like those of the other check."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"metaopt-check: {message}.\n\n{USAGE}")


def asked(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for retraining, which `--weights` does, too."""
    return any(a.partition("=")[0] in ("--retrain", "--weights") for a in arguments)


def main(arguments: Sequence[str]) -> int:
    """Compare predicted with actual effects of leaving out examples, and print the scores."""
    if list(arguments) == ["--retrain"]:
        print(USAGE)
        return 0
    options, overrides = _parsed(arguments)
    if options.weights is not None:
        return _of_runs(options, overrides)
    if options.save or not options.gradient:
        option = "--save" if options.save else "--no-gradient"
        raise ConfigError(f"{option} is for the learned weights of runs; name them by --weights.")
    if not any(word.partition("=")[0] in ("problem", "experiment") for word in overrides):
        raise ConfigError(
            f"--retrain {options.retrain} needs the problem whose training examples are left out: "
            f"problem=<name>, such as problem=domain_reweighting/digits, or --weights RUN, the "
            f"folder of a finished run."
        )
    with composing():
        config = composed(overrides)
        problem = made(config, "metaopt-check")
    steps = whole_steps(config, problem) if options.steps is None else options.steps
    result = _checked(options, problem, steps, {}, config["seed"])
    if options.json is not None:
        options.json.write_text(json.dumps(result.numbers(), indent=2) + "\n")
    return int(result.failed)


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options and the keys of a command line."""
    parser = _Parser("metaopt-check", add_help=False, allow_abbrev=False)
    parser.add_argument("--retrain", type=int)
    parser.add_argument("--leave", type=float, default=0.01)
    parser.add_argument("--subsets", choices=("auto", "disjoint", "random"), default="auto")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--weights", type=Path, nargs="+", action="extend")
    parser.add_argument("--no-gradient", action="store_false", dest="gradient")
    parser.add_argument("--save", action="store_true")
    for name in ("--csv", "--json"):
        parser.add_argument(name, type=Path)
    flags = [f"--{a}" if a.partition("=")[0] in ALIASES else a for a in arguments]
    options, overrides = parser.parse_known_args(flags)
    unknown = [a for a in overrides if a.startswith("-")]
    if unknown:
        parser.error(f"there is no option {unknown[0]}")
    if options.retrain is None:
        raise ConfigError("--weights needs a number of retrainings, 20 at least: --retrain 100.")
    for path in (options.csv, options.json):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{path} is a file in a folder that is not there.")
    return options, overrides


def _checked(
    options: argparse.Namespace,
    problem: GradientProblem,
    steps: int,
    attributions: Mapping[str, Tensor],
    seed: int,
) -> Counterfactual:
    result = check_retraining(
        problem, steps, retrainings=options.retrain, leave=options.leave, subsets=options.subsets,
        attributions=attributions, gradient=options.gradient, key=seed,
        say=lambda line: print(line, flush=True),
    )  # fmt: skip
    show(result)
    if options.csv is not None:
        write(result, options.csv)
    return result


def _of_runs(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Score the learned weights of runs, those that share a training by the same retrainings."""
    if overrides:
        raise ConfigError(
            f"--weights takes the problem of the run; drop {' '.join(overrides)}, or --weights."
        )
    runs, skipped = read_runs(options.weights, options.steps)
    print("".join(f"{line}\n" for line in skipped), end="", flush=True)
    groups = grouped(runs)
    if options.csv is not None and len(groups) > 1:
        raise ConfigError(
            f"--csv writes one set of retrainings; these runs need {len(groups)}, since their "
            f"seeds or trainings differ."
        )
    numbers, failed = [], False
    for members in groups:
        first = next(iter(members.values()))
        if len(groups) > 1:
            print(f"\nseed {first.seed}: {'; '.join(members)}", flush=True)
        named = members if len(runs) > 1 else {WEIGHTS: first}
        weights = {name: run.weights - 1 for name, run in named.items()}
        result = _checked(options, first.problem(), first.steps, weights, first.seed)
        failed |= result.failed
        numbers.append({"seed": first.seed} | result.numbers())
        if options.save:
            for name, run in named.items():
                _save(run.folder, result, result.scores[name], options.leave)
    if options.json is not None:
        content = numbers if len(groups) > 1 else numbers[0]
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(failed)


def _save(folder: Path, result: Counterfactual, score: Score, leave: float) -> None:
    settings = {
        "inner_steps": result.inner_steps, "retrainings": len(result.changes), "leave": leave,
        "subsets": result.kind, "low": score.low, "high": score.high, "dtype": result.dtype,
        "seconds": result.seconds,
    }  # fmt: skip
    write_checks(folder, {"lds": score.lds}, settings)


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
    elif result.smoothness is not None:
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
