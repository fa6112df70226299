"""What ranks share of an outer step, and whether a run depends on how many there are."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from metaopt.engine import distributed, tree
from metaopt.engine.batch_parts import OWN_BATCHES, PartsError, first_examples, part
from metaopt.engine.budget import UNITS
from metaopt.engine.buffers import statistics
from metaopt.engine.gradient_problem import Batch, GradientState, SampledProblem
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import fold, generator, replay

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


def all_reduce(feedback: Feedback) -> Feedback:
    """Return feedback that all ranks share; itself in one process.

    Value, gradient and metrics are averaged. The run is over where it is over on one rank, and a
    cost is the largest of the ranks', since a rank that stops alone leaves the others waiting for
    ever.
    """
    if distributed.world_size() == 1:
        return feedback
    grad = None if feedback.grad is None else distributed.mean(feedback.grad)
    value = torch.as_tensor(feedback.value)
    metrics = {
        k: torch.as_tensor(v, dtype=torch.float64, device=value.device)
        for k, v in feedback.metrics.items()
    }
    value, metrics = distributed.mean({"value": value})["value"], distributed.mean(metrics)
    cost = [float(feedback.cost.get(unit, -1)) for unit in UNITS]  # -1: not counted
    flags = [float(feedback.done), float(feedback.stop is not None)]
    shared = torch.tensor([*flags, *cost], dtype=torch.float64, device=value.device)
    done, stopped, *most = distributed.largest(shared).tolist()
    reasons = distributed.gather(feedback.stop) if stopped else []
    return dataclasses.replace(
        feedback,
        value=value,
        grad=grad,
        metrics=metrics,
        done=bool(done),
        stop=next((reason for reason in reasons if reason is not None), None),
        cost={u: _number(amount) for u, amount in zip(UNITS, most, strict=True) if amount >= 0},
    )


def _number(amount: float) -> float:
    """Return a count as the whole number that it was before ranks shared it."""
    return int(amount) if amount.is_integer() else amount


def shared_state(inner: Any) -> Any:
    """Return the inner state with what each rank has computed of its own batches averaged.

    Parameters and moments are the same on all ranks. Running statistics of BatchNorm, and the inner
    loss that is logged, are means here, so that one checkpoint is the state of all ranks.
    """
    if distributed.world_size() == 1 or not isinstance(inner, GradientState):
        return inner
    inner = inner._replace(loss=distributed.mean({"loss": inner.loss})["loss"])
    if not inner.buffers:
        return inner

    def mean(value: Tensor) -> Tensor:
        return distributed.mean({"": value})[""] if value.is_floating_point() else value

    # What a problem's state keeps of buffers, such as their moving average, differs as they do.
    return inner._replace(
        buffers=tree.map_tensors(mean, inner.buffers), state=tree.map_tensors(mean, inner.state)
    )


def refuse_different(engine: Any) -> None:
    """Raise a `ValueError` if phi or theta of an engine is not the same, bit for bit, on all ranks.

    Cost: a hash of both; nothing in one process.
    """
    if distributed.world_size() == 1:
        return
    levels = {"phi": engine.optimizer.solution, "theta": getattr(engine.inner, "params", {})}
    named = {
        f"{level} ({i})": value
        for level, values in levels.items()
        for i, value in enumerate(tree.tensors(values))
    }
    if names := distributed.different(named):
        raise ValueError(
            f"{type(engine.problem).__name__}: {names[0].partition(' ')[0]} differs between the "
            f"processes after outer step {engine.outer_step}, though all of them take the same "
            f"steps from one start. Let init_outer and init_params draw from the generator that "
            f"they get, and depend on nothing that differs between processes."
        )


def depends_on_processes(loop: Any, outer: Tree, key: int, processes: int) -> bool:
    """Return whether results depend on how many processes split the batches.

    They do where a loss draws dropout masks, or normalises by the statistics of a batch. Else g and
    F have to be means over examples, so that the mean over processes is that of the whole batch:
    values and gradients are compared on a few examples of the first batches.

    Args:
        loop: of the problem.
        outer: a first phi.
        key: of an outer step.
        processes: how many would split a batch.

    Raises:
        PartsError: a batch cannot be split, a loss is no mean over examples, or there are no
            losses whose gradients processes could share.
    """
    refuse_without_gradients(loop, processes)
    with replay(0), tree.replicated(False):
        start = tree.detach(loop.initial(outer, key))
        loop, outer, inner, key = loop.first_of(outer, start, key)
        # theta_0 is often zero, where batch statistics and weights leave no trace.
        shift = tree.random_like(inner.params, generator(fold(key, "shift")))
        inner = inner._replace(params=tree.add(inner.params, shift, 0.1))
        draw = loop.draw(inner, key, 0)
        inner_batch = loop.whole_batch(outer, inner.at(inner.params), draw)
        outer_batch = loop.whole_outer_batch(loop.outer_draw(inner, key))
        named = {"inner_loss": inner_batch, "outer_loss": outer_batch}
        if isinstance(loop.problem, SampledProblem):
            named["feedback_loss"] = outer_batch
        depends = [_depends(loop, k, outer, inner, batch, processes) for k, batch in named.items()]
        return any(depends)


def refuse_without_gradients(loop: Any, processes: int) -> None:
    """Raise a `PartsError` unless a problem has losses whose gradients processes can share."""
    if not isinstance(loop, InnerLoop):
        raise PartsError(
            f"{type(loop.problem).__name__} has no gradients to average, so that {processes} "
            f"processes would compute the same {processes} times. Run it in one process; several "
            f"seeds run in parallel with -m seed=0,1 and a launcher."
        )


def _depends(
    loop: InnerLoop, name: str, outer: Tree, inner: GradientState, batch: Batch, processes: int
) -> bool:
    """Return whether a loss depends on the split for a reason that is a problem's right."""
    problem = type(loop.problem).__name__
    parts = [part(batch, problem, (r, processes)) for r in range(processes)]
    few = first_examples(batch, problem, 2 * processes)

    def slopes(batch: Batch, key: int = 0) -> tuple[list[Tree], Tree]:
        return _slopes(loop, name, outer, inner, batch, key)

    try:
        whole, after = slopes(few)
        parts = [part(few, problem, (r, processes)) for r in range(processes)]
        each = [slopes(p)[0] for p in parts]
    except RuntimeError:  # a loss that needs more examples
        few = batch
        whole, after = slopes(batch)
        each = [slopes(p)[0] for p in parts]
    dtype = loop.problem.compute_dtype or whole[0][""].dtype
    tolerance = 5e-2 if loop.half_precision else _TOLERANCE.get(dtype, 5e-2)

    again = slopes(few, key=1)[0]
    pairs = zip(whole, again, strict=True)
    if any(_differ(a, b, tolerance * float(tree.norm(a))) for a, b in pairs):
        return True  # noise
    for i, sought in enumerate(whole):
        mean = tree.scale(each[0][i], 1 / processes)
        for rest in each[1:]:
            mean = tree.add(mean, rest[i], 1 / processes)
        scale = float(tree.norm(sought)) + sum(float(tree.norm(e[i])) for e in each) / processes
        if not _differ(sought, mean, tolerance * scale):
            continue
        if any(not torch.equal(after[k], t) for k, t in inner.buffers.items()):
            return True  # BatchNorm
        what = "value" if i == 0 else f"gradient in {('theta', 'phi')[i - 1]}"
        raise PartsError(
            f"{name} of {problem} is no mean over the examples of a batch: its {what} on a whole "
            f"batch is not the mean of those on the parts of {processes} processes, so that "
            f"processes that split batches would minimise another loss. Return a mean over "
            f"examples, run it in one process, or {OWN_BATCHES}."
        )
    return False


def _differ(a: Tree, b: Tree, most: float) -> bool:
    return float(tree.norm(tree.add(a, b, -1.0))) > most


def _slopes(
    loop: InnerLoop, name: str, outer: Tree, inner: GradientState, batch: Batch, key: int
) -> tuple[list[Tree], Tree]:
    """Return a loss on a batch and its gradients in theta and phi, and the buffers after it."""
    at, phi = inner.at(tree.leaves(inner.params)), tree.leaves(outer)
    with replay(key), statistics(at.buffers, at.state):
        loss = loop.apply(name, phi, at, batch)
    return [{"": loss.detach()}, *tree.gradient(loss, at.params, phi)], at.buffers
