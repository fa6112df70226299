"""Which options of `DomainReweighting` are legal, alone and together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from metaopt.engine.random import generator
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.problems.domain_reweighting.batches import Sampling
from metaopt.problems.domain_reweighting.population import check_refresh
from metaopt.problems.domain_reweighting.task import check_task
from metaopt.problems.domain_reweighting.weights import WeightTable

if TYPE_CHECKING:
    from metaopt.problems.domain_reweighting.problem import DomainReweighting

Objective = Literal["meta", "worst_domain", "excess"]
Trained = Literal["domains", "meta"]
Initial = Literal["uniform", "oracle", "random", "filter"]
Reference = Literal["meta", "training"]
Retraining = Literal["final", "average", "top"]


def check_options(problem: DomainReweighting) -> None:
    """Raise a `ValueError` unless every option is legal and they fit the task and each other."""
    check_choices(
        problem,
        objective=get_args(Objective),
        sampling=get_args(Sampling),
        train_on=get_args(Trained),
        initial=get_args(Initial),
        reference=get_args(Reference),
        retrain=(None, *get_args(Retraining)),
    )
    check_ranges(
        problem,
        "batch >= 1",
        "meta_batch >= 1",
        "reference_steps >= 1",
        "finetune >= 0",
        "0 < keep <= 1",
        "0 < export_keep <= 1",
        "retrain_steps >= 1 or null",
        "refresh >= 0",
    )
    check_task(problem.task)
    _check_meta(problem)
    _check_weights(problem)
    _check_follow(problem)
    if problem.refresh:
        check_refresh(problem)


def _check_meta(problem: DomainReweighting) -> None:
    needed = {
        "objective=meta": problem.objective == "meta",
        "train_on=meta": problem.train_on == "meta",
        "initial=filter": problem.initial == "filter" and problem.reference == "meta",
        "finetune": problem.finetune > 0,
        "LearningToReweight": problem.weights.reads == "gradients",
    }
    if not problem.task.meta_rows and any(needed.values()):
        names = ", ".join(name for name, used in needed.items() if used)
        raise ValueError(
            f"the task has no meta examples, which {names} needs. Give it some, or set "
            "objective=worst_domain or excess."
        )
    if problem.initial == "filter" and problem.objective == "excess":
        raise ValueError(
            "initial=filter and objective=excess each need a reference of their own; take one."
        )


def _check_weights(problem: DomainReweighting) -> None:
    name = type(problem.weights).__name__
    if not isinstance(problem.weights, WeightTable):
        if problem.retrain is not None and problem.weights.reads != "phi":
            raise ValueError(
                f"retrain needs a WeightTable or a Rater; {name} has no weights before it sees a "
                f"batch. Set retrain=null."
            )
        if problem.retrain == "average":
            raise ValueError(
                f"retrain=average needs a WeightTable; the average of {name}'s parameters over a "
                f"run is no average of weights. Set retrain=final or top."
            )
        if problem.initial != "uniform":
            raise ValueError(f"{name} starts from no given weights; set initial=uniform.")
    elif problem.initial == "filter":
        _check_filter(problem.weights, problem.keep)
    if problem.weights.reads == "gradients" and problem.objective != "meta":
        raise ValueError(f"{name} descends the meta-loss; set objective=meta.")
    count, wanted = len(problem.task.domains), problem.effective_domains
    if wanted is not None and not 1 <= wanted <= count:
        raise ValueError(f"effective_domains must be in [1, {count}], or null; got {wanted}.")
    unknown = problem.task.quality is None
    random = problem.initial == "random" and wanted is None
    if unknown and (problem.initial == "oracle" or random):
        raise ValueError(
            f"initial={problem.initial} needs the quality of the domains, which this task does "
            "not know. Set initial=random with effective_domains, or uniform."
        )


def _check_follow(problem: DomainReweighting) -> None:
    if problem.follow is None:
        return
    if problem.retrain is None or not problem.compare_uniform:
        raise ValueError(
            f"follow={problem.follow} is measured along a retraining and a uniform training; set "
            f"retrain=final or top, and compare_uniform=true."
        )
    params, buffers = problem.task.init(generator(0))
    known = list(problem.task.metrics(params | buffers))
    if problem.follow not in known:
        raise ValueError(
            f"follow must be a metric of the task, {', '.join(known)}; got {problem.follow!r}."
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
