"""A problem's inner run as a function of one weight for each training example."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import Batch, GradientProblem, InnerTensors
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, fold, generator

COMPARED = 16
"""Examples of a batch whose losses are evaluated next to different others."""


@runtime_checkable
class ExampleLosses(Protocol):
    """A gradient problem whose inner level learns from the losses of single training examples.

    Any `GradientProblem` with these four names is one. They say what retraining without some of the
    examples is: `metaopt-check --retrain` and `metaopt.testing.check_retraining`.

    Example:
        class Mine(GradientProblem):
            ...  # as any problem; its inner batches are the indices of examples

            @property
            def example_count(self):
                return len(self.x)

            def examples_of(self, batch):
                return batch

            def batch_of(self, examples):
                return examples

            def example_losses(self, outer, inner, batch):
                predicted = self.x[batch] @ inner["weight"]
                return (predicted - self.y[batch]) ** 2

    Attributes:
        example_count: number n of training examples.
    """

    @property
    def example_count(self) -> int:  # noqa: D102
        ...

    def examples_of(self, batch: Batch) -> Tensor:
        """Return the indices in [0, n) of an inner batch's examples, (B,)."""
        ...

    def batch_of(self, examples: Tensor) -> Batch:
        """Return the inner batch that holds given examples, (B,)."""
        ...

    def example_losses(self, outer: Tree, inner: InnerTensors, batch: Batch) -> Tensor:
        """Return the loss of each example of an inner batch, (B,), at weight 1.

        Models that are trained at once have an axis in front.
        """
        ...


class ExampleWeighted(GradientProblem):
    """A problem at a fixed phi, whose outer variable is a weight w_i of each training example.

    g(w, theta) = mean over the batch's examples i of w_i l_i(theta); F and all else as before. The
    mean is over all B of the batch, whatever their weights: an example of weight 0 is left out.

    Args:
        problem: whose inner level it is; with the names of `ExampleLosses`.
        outer: its phi.

    Raises:
        TypeError: the problem does not say what its training examples are.
    """

    def __init__(self, problem: GradientProblem, outer: Tree) -> None:
        if not isinstance(problem, ExampleLosses):
            missing = [
                name
                for name in ("example_count", "examples_of", "batch_of", "example_losses")
                if not hasattr(problem, name)
            ]
            raise TypeError(
                f"{type(problem).__name__} does not say what its training examples are; it needs "
                f"{', '.join(missing)}: see metaopt.engine.example_weights.ExampleLosses."
            )
        self.base: Any = problem
        self.outer = tree.detach(outer)
        self.count = int(problem.example_count)
        self.warm_start, self.frozen = problem.warm_start, problem.frozen
        self.compute_dtype, self.replicates = problem.compute_dtype, problem.replicates
        if callable(problem.inner_optimizer):
            self.inner_optimizer = self._optimizer
        else:
            self.inner_optimizer = problem.inner_optimizer

    def _optimizer(self, outer: Tree, step: int) -> InnerOptimizer:
        optimizer: InnerOptimizer = self.base.inner_optimizer(self.outer, step)
        return optimizer

    def init_outer(self, generator: Generator) -> Tree:
        """Return weights of 1, (n,), in the precision and on the device of theta."""
        theta = next(iter(self.base.init_params(self.outer, generator).values()))
        dtype = theta.dtype if theta.is_floating_point() else None
        return {"weights": torch.ones(self.count, dtype=dtype, device=theta.device)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        """Return theta_0."""
        params: Tree = self.base.init_params(self.outer, generator)
        return params

    def init_buffers(self, outer: Tree, params: Tree) -> Tree:
        """Return the module's buffers."""
        buffers: Tree = self.base.init_buffers(self.outer, params)
        return buffers

    def init_state(self, outer: Tree, params: Tree) -> dict[str, Any]:
        """Return the problem's own state."""
        state: dict[str, Any] = self.base.init_state(self.outer, params)
        return state

    def update_state(self, outer: Tree, inner: InnerTensors, step: int) -> dict[str, Any]:
        """Return the problem's own state after a step."""
        state: dict[str, Any] = self.base.update_state(self.outer, inner, step)
        return state

    def inner_batch(self, draw: Draw) -> Batch:
        """Return the problem's batch: whatever their weights, the same examples."""
        return self.base.inner_batch(draw)

    def outer_batch(self, draw: Draw) -> Batch:
        """Return the problem's outer batch."""
        return self.base.outer_batch(draw)

    def prepare_batch(self, outer: Tree, inner: InnerTensors, batch: Batch, draw: Draw) -> Batch:
        """Return the batch with the problem's decisions."""
        return self.base.prepare_batch(self.outer, inner, batch, draw)

    def inner_loss(self, outer: Tree, inner: InnerTensors, batch: Batch) -> Tensor:
        """Return g, summed over models that are trained at once."""
        losses = self.example_losses(outer, inner, batch)
        weights = outer["weights"]
        chosen = weights[self.base.examples_of(batch).to(weights.device)]
        return (chosen.to(losses) * losses).mean(-1).sum()

    def example_losses(self, outer: Tree, inner: InnerTensors, batch: Batch) -> Tensor:
        """Return the loss of each example at weight 1, (..., B)."""
        losses: Tensor = self.base.example_losses(self.outer, inner, batch)
        return losses

    def outer_loss(self, outer: Tree, inner: InnerTensors, batch: Batch) -> Tensor:
        """Return F."""
        loss: Tensor = self.base.outer_loss(self.outer, inner, batch)
        return loss


def example_losses(
    loop: InnerLoop, outer: Tree, params: Tree, inner: Any, examples: Tensor, key: int
) -> Tensor:
    """Return the losses of given examples, (..., B), on the masks of a key; buffers stay.

    Args:
        loop: of an `ExampleWeighted`.
        outer: the weights.
        params: theta.
        inner: the rest of the inner state.
        examples: which, (B,).
        key: of masks and decisions.
    """
    problem: Any = loop.problem
    draw, at = Draw(fold(key, "examples")), inner.at(params)
    batch = problem.base.batch_of(examples)
    batch = problem.prepare_batch(outer, loop.tensors(at), batch, draw.fresh("decide"))
    with loop.masks(draw, "noise"):
        losses: Tensor = loop.apply("example_losses", outer, at, batch)
    if losses.shape[-1:] != examples.shape:
        raise ValueError(
            f"{type(problem.base).__name__}.example_losses returned {tuple(losses.shape)} for "
            f"{len(examples)} examples; return one loss for each, in the order of examples_of."
        )
    return losses


@torch.no_grad()
def check_examples(loop: InnerLoop, key: int) -> str:
    """Return what a reader must know of a problem's training examples, or an empty text.

    Args:
        loop: of an `ExampleWeighted`.
        key: of the run.

    Raises:
        ValueError: `batch_of`, `examples_of` and `example_losses` do not fit together, or an
            example's loss depends on the others of its batch, as it does through BatchNorm.
    """
    problem: Any = loop.problem
    name, count = type(problem.base).__name__, problem.count
    outer = problem.init_outer(generator(0))
    inner = loop.start(outer, None, key)
    draw = loop.draw(inner, key, 0)
    batch = loop.batch(outer, inner.at(inner.params), draw)
    examples = problem.base.examples_of(batch).cpu()
    if examples.ndim != 1 or not bool(((examples >= 0) & (examples < count)).all()):
        raise ValueError(
            f"{name}.examples_of must return the indices of a batch's examples, (B,), in "
            f"[0, {count}); got {examples.tolist()[:8]}."
        )
    chosen = examples.unique()[:COMPARED]
    returned = problem.base.examples_of(problem.base.batch_of(chosen)).cpu()
    if not torch.equal(returned, chosen):
        raise ValueError(
            f"{name}.batch_of must return a batch of the examples that it is given; "
            f"examples_of finds {returned.tolist()[:8]} in that of {chosen.tolist()[:8]}."
        )
    _refuse_coupled(loop, outer, inner, chosen, key)
    own = problem.base.inner_loss(problem.outer, loop.tensors(inner.at(inner.params)), batch)
    ours = loop.inner_value(outer, inner.at(inner.params), draw, batch)
    if float((own - ours).abs()) > 1e-3 * float(ours.abs()) and not _has_masks(loop, inner, draw):
        return (
            f"the inner loss of {name} at its first phi is {float(own):.4g}, the mean of its "
            f"example_losses {float(ours):.4g}: each training here has the second one"
        )
    return ""


def _has_masks(loop: InnerLoop, inner: Any, draw: Draw) -> bool:
    """Return whether an inner loss draws random numbers, so that two of its values may differ."""
    outer = loop.problem.init_outer(generator(0))
    batch = loop.batch(outer, inner.at(inner.params), draw)
    values = []
    for key in (0, 1):
        with loop.masks(Draw(key), "noise"):
            values.append(float(loop.apply("inner_loss", outer, inner.at(inner.params), batch)))
    return values[0] != values[1]


def _refuse_coupled(loop: InnerLoop, outer: Tree, inner: Any, chosen: Tensor, key: int) -> None:
    if len(chosen) < 3:
        return
    before = example_losses(loop, outer, inner.params, inner, chosen, key)[..., :-1]
    changes = []
    for other in chosen[:3]:
        # The last example is exchanged. Several are tried, since a batch padded to its longest text
        # may have other masks of dropout with one of them.
        exchanged = torch.cat([chosen[:-1], other[None]])
        after = example_losses(loop, outer, inner.params, inner, exchanged, key)[..., :-1]
        changes.append(float((after - before).abs().max() / before.abs().max().clamp(min=1e-30)))
    if min(changes) > torch.finfo(before.dtype).eps ** 0.5:
        raise ValueError(
            f"the loss of an example of {type(loop.problem.base).__name__} depends on the others "  # type: ignore[attr-defined]
            f"of its batch, as through BatchNorm in training mode: an example of weight 0 would "
            f"still act, and its weight is no prediction of training without it. Take layers that "
            f"treat each example alone (LayerNorm, GroupNorm), or freeze the statistics."
        )
