"""The reverse pass through an inner run: from its end to its start."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.protocols import Tree
from metaopt.estimators.held_fixed import outer_value
from metaopt.estimators.reverse.adjoints import at_end, graph, pull_back, through_steps
from metaopt.estimators.reverse.journal import Journal, PassState, norm
from metaopt.estimators.reverse.schedules import Schedule
from metaopt.estimators.reverse.stores import Store


@dataclass(frozen=True)
class ReversePass:
    """dF/dphi through `steps`, by a schedule of what is kept and a store that keeps it.

    Args:
        loop: the inner level.
        phi: leaves of the outer variable.
        key: of the inner run.
        steps: which of its steps are differentiated.
        schedule: which states are kept.
        store: where they are.
        journal: where it is written down how far the pass has come, or `None`.
        to_start: whether the adjoint of the first state is needed. Through the graph of all steps
            it is then left out: of a single step it is a product with d2g/dtheta2, which dF/dphi
            does not take.
    """

    loop: InnerLoop
    phi: Tree
    key: int
    steps: range
    schedule: Schedule
    store: Store
    journal: Journal | None = None
    to_start: bool = True

    def __call__(self, start: GradientState, progress: PassState | None = None) -> PassState:
        """Return where the pass ends.

        Args:
            start: the state before the first of the steps.
            progress: how far an interrupted pass had come, or `None`.
        """
        if self.schedule.first(self.steps[-1]) == self.steps.start:
            return self._at_once(start)
        if self.steps.start not in self.store.steps:
            self.store.put(self.steps.start, start)
        if progress is None:
            progress = self._entered(self._end())
        while progress.target >= self.steps.start:
            progress = self._entered(self._back(progress))
        return progress

    def _entered(self, progress: PassState) -> PassState:
        """Return the progress, written down where that is due."""
        if self.journal is None or self.journal.enter(progress, self.steps.start):
            self.store.release()
        return progress

    def _at_once(self, start: GradientState) -> PassState:
        """Return the end of the pass by the graph of all steps, with F at its end."""
        start, end = graph(self.loop, self.phi, start, self.key, self.steps)
        # An alias, for the slope that does not lead through a state made of the parameters.
        last = {k: p.view_as(p) for k, p in end.params.items()}
        draw = self.loop.outer_draw(end, self.key)
        loss = outer_value(self.loop, "Unroll", self.phi, end._replace(params=last), draw)
        inputs = self.loop.differentiated(start) if self.to_start else []
        grads, adjoints = pull_back([tree.total(loss)], None, self.phi, [*inputs, *last.values()])
        size, end = norm(adjoints[len(inputs) :], end), tree.detach(end)
        before = self.steps.start - 1
        return PassState(before, end, loss.detach(), grads, adjoints[: len(inputs)], size)

    def _end(self) -> PassState:
        """Return the beginning of the pass: the last state, F and their adjoint."""
        target = self.steps[-1]
        first = self.schedule.first(target)
        state = self.store.put(first, self._reached(target))
        end = self._advanced(state, range(first, self.steps.stop))
        value, grads, adjoint = at_end(self.loop, self.phi, end, self.key)
        return PassState(target, end, value, grads, adjoint, norm(adjoint, end))

    def _back(self, progress: PassState) -> PassState:
        """Return the pass with the steps up to the target differentiated."""
        first = self.schedule.first(progress.target)
        steps, done = range(first, progress.target + 1), self.steps.stop - 1 - progress.target
        with self.loop.progress.phase("reverse step", len(self.steps), done):
            grads, adjoint = through_steps(
                self.loop, self.phi, self._reached(progress.target), self.key, steps,
                progress.adjoint,
            )  # fmt: skip
        grads = list(torch._foreach_add(progress.grads, grads))
        return progress._replace(target=first - 1, grads=grads, adjoint=adjoint)

    def _reached(self, target: int) -> GradientState:
        """Return the state from which `target` is differentiated, run from the last kept one."""
        first, at = self.schedule.first(target), self.store.steps[-1]
        if at == first:
            return self.store.pop()
        state = self.store.get()
        while (following := self.schedule.next(self.store.steps, target)) is not None:
            state = self.store.put(following, self._advanced(state, range(at, following)))
            at = following
        return self._advanced(state, range(at, first))

    def _advanced(self, state: GradientState, steps: range) -> GradientState:
        """Return a state some steps on; it is stepped in place."""
        done = steps.start - self.steps.start
        for k in self.loop.progress.track(steps, "inner step", len(self.steps), done):
            state = self.loop.step_(self.phi, state, self.loop.draw(state, self.key, k))
        return state
