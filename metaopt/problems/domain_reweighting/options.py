"""Which options of `DomainReweighting` are legal, alone and together."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

from metaopt.problems.domain_reweighting.batches import Sampling
from metaopt.problems.domain_reweighting.task import ReweightingTask, check_task
from metaopt.problems.domain_reweighting.weights import Regulariser, Weights, WeightTable

Objective = Literal["meta", "worst_domain", "excess"]
Trained = Literal["domains", "meta"]
Initial = Literal["uniform", "oracle", "random", "filter"]
Retraining = Literal["final", "average"]

CHOICES = {
    "objective": get_args(Objective),
    "sampling": get_args(Sampling),
    "train_on": get_args(Trained),
    "initial": get_args(Initial),
    "retrain": (None, *get_args(Retraining)),
}
MINIMA = {"batch": 1, "meta_batch": 1, "reference_steps": 1, "finetune": 0}


class Options(Protocol):
    """The arguments of `DomainReweighting`, as it keeps them."""

    task: ReweightingTask
    weights: Weights
    objective: Objective
    train_on: Trained
    initial: Initial
    effective_domains: float | None
    keep: float
    regulariser: Regulariser | None
    retrain: Retraining | None
    finetune: int


def check_options(options: Options) -> None:
    """Raise a `ValueError` unless every option is legal and they fit the task and each other."""
    for name, legal in CHOICES.items():
        value = getattr(options, name)
        if value not in legal:
            listed = ", ".join("null" if option is None else option for option in legal)
            raise ValueError(f"{name} must be one of {listed}; got {value!r}.")
    for name, least in MINIMA.items():
        if getattr(options, name) < least:
            raise ValueError(f"{name} must be >= {least}; got {getattr(options, name)}.")
    if not 0 < options.keep <= 1:
        raise ValueError(f"keep must be in (0, 1]; got {options.keep}.")
    check_task(options.task)
    _check_meta(options)
    _check_weights(options)


def _check_meta(options: Options) -> None:
    needed = {
        "objective=meta": options.objective == "meta",
        "train_on=meta": options.train_on == "meta",
        "initial=filter": options.initial == "filter",
        "finetune": options.finetune > 0,
        "LearningToReweight": options.weights.reads == "gradients",
    }
    if not options.task.meta_rows and any(needed.values()):
        names = ", ".join(name for name, used in needed.items() if used)
        raise ValueError(
            f"the task has no meta rows, which {names} needs. Give it some, or set "
            "objective=worst_domain or excess."
        )
    if options.initial == "filter" and options.objective == "excess":
        raise ValueError(
            "initial=filter and objective=excess each need a reference of their own; take one."
        )


def _check_weights(options: Options) -> None:
    name = type(options.weights).__name__
    if not isinstance(options.weights, WeightTable):
        for option in ("regulariser", "retrain"):
            if getattr(options, option) is not None:
                raise ValueError(
                    f"{option} needs a WeightTable; {name} has no weights before it sees a batch. "
                    f"Set {option}=null."
                )
        if options.initial != "uniform":
            raise ValueError(f"{name} starts from no given weights; set initial=uniform.")
    elif options.initial == "filter":
        _check_filter(options.weights, options.keep)
    if options.weights.reads == "gradients" and options.objective != "meta":
        raise ValueError(f"{name} descends the meta-loss; set objective=meta.")
    count, wanted = len(options.task.domains), options.effective_domains
    if wanted is not None and not 1 <= wanted <= count:
        raise ValueError(f"effective_domains must be in [1, {count}], or null; got {wanted}.")
    unknown = options.task.quality is None
    random = options.initial == "random" and wanted is None
    if unknown and (options.initial == "oracle" or random):
        raise ValueError(
            f"initial={options.initial} needs the quality of the domains, which this task does "
            "not know. Set initial=random with effective_domains, or uniform."
        )


def _check_filter(weights: WeightTable, keep: float) -> None:
    if weights.per != "row":
        raise ValueError(
            f"initial=filter drops rows, which a weight for each {weights.per} cannot. Set "
            "weights.per=row."
        )
    if weights.link in ("sigmoid", "clamp") and weights.bound < 1 / keep:
        raise ValueError(
            f"initial=filter weighs the rows that it keeps by 1 / keep = {1 / keep:g}, above "
            f"weights.bound={weights.bound:g}. Raise bound, or keep."
        )
