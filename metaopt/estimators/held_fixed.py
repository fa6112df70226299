"""What an estimator holds fixed, refused where a derivative leads from it to a loss.

A problem's state and a module's buffers, such as an average and BatchNorm's running statistics, are
computed from theta in every inner step. Before a run both losses are tried at the first state
(`refuse_state`, `refuse_buffers`); since a loss may come to read them later, as a teacher after a
warm-up, `Held` looks at every outer step. Where nothing is read that costs neither a second
evaluation nor a wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.buffers import buffer_path, held_fixed
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw


class Held:
    """Leaves in the place of what an estimator holds fixed.

    Args:
        loop: the inner level.
        estimator: who holds it fixed, for the message.
        inner: the state that a loss is evaluated at.
        state: whether the problem's own state is held fixed.
        buffers: the names of the module's buffers that are.

    Attributes:
        inner: the same state with leaves.
    """

    def __init__(
        self, loop: InnerLoop, estimator: str, inner: GradientState, state: bool,
        buffers: Container[str] = (),
    ) -> None:  # fmt: skip
        self.loop, self.estimator = loop, estimator
        self.state: Tree = {}
        if state and loop.updates_state:
            inner = inner._replace(state=tree.map_tensors(tree.leaf, inner.state))
            self.state = tree.numbered(inner.state)
        self.buffers = {k: tree.leaf(t) for k, t in inner.buffers.items() if k in buffers}
        if self.buffers:
            inner = inner._replace(buffers={**inner.buffers, **self.buffers})
        self.inner = inner

    def block(self) -> AbstractContextManager[None]:
        """Return the block to evaluate a loss in: statistics that it writes need no graph."""
        return held_fixed() if self.buffers else nullcontext()

    def refuse_read(self, loss: str, value: Tensor) -> None:
        """Raise a `ValueError` if a derivative leads to the value of a loss; its graph is kept."""
        if not (self.state or self.buffers):
            return
        at, value = f" at outer step {self.loop.outer_step + 1}", tree.total(value)
        if tree.reached(value, self.state):
            raise ValueError(_state_sentence(self.loop, self.estimator, loss, at))
        reached = tree.reached(value, self.buffers)
        for name in (k for k in self.buffers if k in reached):  # in the module's order
            raise ValueError(
                _buffer_sentence(self.loop, self.estimator, loss, name, "the parameters", at)
            )


def outer_value(
    loop: InnerLoop, estimator: str, phi: Tree, end: GradientState, draw: Draw
) -> Tensor:
    """Return F for an estimator that carries buffers which a loss reads at the first state.

    Raises:
        ValueError: F reads others that an inner step computes.
    """
    held = Held(loop, estimator, end, state=False, buffers=loop.dropped_buffers)
    with held.block():
        loss = loop.outer_value(phi, held.inner, draw)
    held.refuse_read("outer_loss", loss)
    return loss


def refuse_state(loop: InnerLoop, estimator: str, outer: Tree, inner: GradientState) -> None:
    """Raise a `ValueError` if a loss reads the state that inner steps change.

    One evaluation of both losses, with a derivative in the state, tells: metrics may read it.
    """
    state = tree.map_tensors(tree.leaf, inner.state)
    leaves = tree.numbered(state)
    at = inner.at(inner.params)._replace(state=state)
    losses: dict[str, Callable[[], Tensor]] = {
        "inner_loss": lambda: loop.inner_value(outer, at, loop.draw(inner, 0, 0)),
        "outer_loss": lambda: loop.outer_value(outer, at, loop.outer_draw(inner, 0)),
    }
    for name, value in losses.items():
        if tree.reached(value(), leaves):
            raise ValueError(_state_sentence(loop, estimator, name))


def refuse_buffers(
    loop: InnerLoop, estimator: str, outer: Tree, inner: GradientState, sources: Sequence[str],
    draws: Sequence[Draw], carried: Collection[str] = (),
) -> None:  # fmt: skip
    """Raise a `ValueError` if a loss reads buffers that inner steps compute from the sources.

    Args:
        loop: the inner level.
        estimator: who holds them fixed, for the message.
        outer, inner, sources, draws, carried: see `buffer_path`.
    """
    path = buffer_path(loop, outer, inner, sources, draws, carried)
    if path is not None:
        source = "the parameters" if path.source == "theta" else "the outer variable"
        at = f" at outer step {loop.outer_step + 1}" if loop.outer_step else ""
        raise ValueError(_buffer_sentence(loop, estimator, path.loss, path.buffer, source, at))


def _state_sentence(loop: InnerLoop, estimator: str, loss: str, at: str = "") -> str:
    return (
        f"{estimator} cannot carry the derivative of a state, and {loss} of "
        f"{type(loop.problem).__name__} reads one{at} that update_state computes. Use "
        f"estimator=unroll, forward or one_step, or detach the state in {loss}."
    )


def _buffer_sentence(
    loop: InnerLoop, estimator: str, loss: str, name: str, source: str, at: str = ""
) -> str:
    instead = "Use estimator=unroll or forward"
    if estimator in ("Unroll", "Forward"):
        instead = f"Let {loss} read it from the first step on"
    return (
        f"{estimator} cannot carry the derivative of buffers: {loss} of "
        f"{type(loop.problem).__name__} reads {name!r}{at}, which inner steps compute from "
        f"{source}. {instead}; or let the module use batch statistics "
        f"(module.train()) in {loss}; or pass it inner.with_constant_buffers(), "
        f"which defines that the buffers are constants."
    )
