"""What a problem, an estimator and an outer optimizer promise, as classes of tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from metaopt.engine import Engine, tree
from metaopt.engine.black_box_loop import BlackBoxLoop
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop, loop_of
from metaopt.engine.protocols import BilevelProblem, Estimator, Feedback, OuterOptimizer
from metaopt.engine.random import fold, generator
from metaopt.optimizers import Grid, Random, Search
from metaopt.testing.trees import form, identical, new_tensors

Parts = tuple[BilevelProblem, Estimator, OuterOptimizer]


class RunContract:
    """What holds for any three roles put together.

    Attributes:
        outer_steps: length of the short runs.
    """

    outer_steps = 3

    @pytest.fixture
    def make(self) -> Callable[[], Parts]:
        """Override: return a function that makes the three roles, equal at every call."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture `make`.")

    def test_roles(self, make: Callable[[], Parts]) -> None:
        """The three objects have the methods of their roles."""
        problem, estimator, optimizer = make()
        assert isinstance(problem, BilevelProblem)
        assert isinstance(estimator, Estimator)
        assert isinstance(optimizer, OuterOptimizer)

    def test_same_seed_same_run(self, make: Callable[[], Parts]) -> None:
        """Two runs of one seed agree to the bit, whatever torch's global generator holds."""
        torch.manual_seed(1)
        first = _run(make(), self.outer_steps)
        torch.manual_seed(2)
        assert identical(first, _run(make(), self.outer_steps))

    def test_roles_used_before_start_over(self, make: Callable[[], Parts]) -> None:
        """An estimator and an optimizer that another run has used give what new ones give."""
        problem, estimator, optimizer = make()
        if problem.records is not None:
            pytest.skip("its optimizer asks by the problem's own records")
        first = _run((problem, estimator, optimizer), self.outer_steps)
        again = _run((make()[0], estimator, optimizer), self.outer_steps)
        assert identical(first, again)

    def test_resumed_run_continues_to_the_bit(
        self, make: Callable[[], Parts], tmp_path: Path
    ) -> None:
        """State survives `torch.save` and a load of weights only; the rest of the run agrees.

        The records of a problem that keeps some go with the checkpoint.
        """
        with _recorded(make(), tmp_path / "whole") as parts:
            whole = Engine(*parts, outer_steps=2 * self.outer_steps)
            expected = [_copy(f) for _, f in whole][self.outer_steps :]
        with _recorded(make(), tmp_path / "parts") as parts:
            start = Engine(*parts, outer_steps=self.outer_steps)
            assert len(list(start)) == self.outer_steps
            torch.save(start.state_dict(), tmp_path / "state.pt")
        with _recorded(make(), tmp_path / "parts") as parts:
            resumed = Engine(*parts, outer_steps=2 * self.outer_steps)
            resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            assert identical([_copy(f) for _, f in resumed], expected)
            assert identical(resumed.state_dict(), whole.state_dict())

    def test_feedback_fits_the_outer_variable(self, make: Callable[[], Parts]) -> None:
        """The value is a finite scalar; a gradient has the keys, shapes and dtypes of phi."""
        engine = Engine(*make(), outer_steps=self.outer_steps)
        for _, feedback in engine:
            value = torch.as_tensor(feedback.value)
            assert value.shape == ()
            assert bool(torch.isfinite(value))
            if feedback.grad is not None:
                outer = engine.optimizer.solution
                assert list(feedback.grad) == list(outer)
                assert form(feedback.grad) == form(outer)

    def test_no_graph_is_kept(self, make: Callable[[], Parts]) -> None:
        """After a step no tensor hangs on a graph, neither in the state nor elsewhere."""
        with new_tensors() as alive:
            engine = Engine(*make(), outer_steps=self.outer_steps)
            last = [feedback for _, feedback in engine][-1]
            held = [*tree.tensors(engine.state_dict()), *tree.tensors(vars(last))]
            assert not [t for t in held if t.requires_grad]
            assert not [t for t in alive() if t.grad_fn is not None]

    def test_no_tensor_is_left_behind(self, make: Callable[[], Parts]) -> None:
        """A longer run keeps no more tensors alive than its state accounts for."""
        with new_tensors() as alive:
            engine = Engine(*make(), outer_steps=3 * self.outer_steps)
            extra = []
            for step, _ in engine:
                if step % self.outer_steps == 0:
                    extra.append(len(alive()) - len(list(tree.tensors(engine.state_dict()))))
            assert extra[-1] <= extra[0]


class ProblemContract(RunContract):
    """What a problem promises, with the estimator and the optimizer it is shipped with.

    Attributes:
        falling_steps: outer steps after which the meta-objective must have fallen.
    """

    falling_steps = 40

    def test_inner_step_leaves_its_input_alone(self, make: Callable[[], Parts]) -> None:
        """An inner step leaves phi alone, and a black box's leaves the inner state alone, too."""
        loop, outer, inner = _start(make())
        before, before_outer = tree.clone(inner), tree.clone(outer)
        first = tree.clone(_step(loop, outer, inner))
        assert identical(inner, before)
        assert identical(outer, before_outer)
        assert identical(_step(loop, outer, inner), first)
        assert not identical(first, before)

    def test_evaluate_leaves_its_input_alone(self, make: Callable[[], Parts]) -> None:
        """`evaluate` changes nothing and is a function of its key."""
        loop, outer, inner = _start(make())
        inner = _step(loop, outer, inner)
        before, before_outer = tree.clone(inner), tree.clone(outer)
        first = _copy(loop.evaluate(outer, inner, 6))
        assert identical(inner, before)
        assert identical(outer, before_outer)
        assert identical(_copy(loop.evaluate(outer, inner, 6)), first)

    def test_losses_are_pure(self, make: Callable[[], Parts]) -> None:
        """The same (outer, inner, batch) under the same key gives the same losses.

        Whatever was called before, with gradients and without; buffers are copied each time.
        """
        parts = make()
        if not isinstance(parts[0], GradientProblem):
            pytest.skip("states no losses")
        loop, outer, inner = _start(parts)
        assert isinstance(loop, InnerLoop)
        draw, outer_draw = loop.draw(inner, 5, 0), loop.outer_draw(inner, 5)
        batch = loop.batch(outer, inner.at(inner.params), draw)

        def losses(phi: Any, theta: Any) -> list[torch.Tensor]:
            values = [
                loop.inner_value(phi, inner.at(theta), draw, batch),
                loop.outer_value(phi, inner.at(theta), outer_draw),
            ]
            return [value.detach().clone() for value in values]

        first = losses(tree.leaves(outer), tree.leaves(inner.params))
        with torch.no_grad():
            assert identical(losses(outer, inner.params), first)
        later = loop.run(outer, tree.clone(inner), 6, 2)
        loop.outer_step += 1
        loop.evaluate(outer, later, 7)
        parts[0].metrics(outer, later)
        assert identical(losses(outer, tree.leaves(inner.params)), first)

    def test_init_is_a_function_of_its_key(self, make: Callable[[], Parts]) -> None:
        """Two problems made alike start alike."""
        first, second = _start(make()), _start(make())
        assert identical(first[1:], second[1:])

    def test_metrics_are_finite(self, make: Callable[[], Parts]) -> None:
        """The figures of a short run are finite numbers."""
        engine = Engine(*make(), outer_steps=self.outer_steps)
        assert len(list(engine)) == self.outer_steps
        engine.finish()
        assert all(math.isfinite(v) for v in engine.metrics().values())

    def test_meta_objective_falls(self, make: Callable[[], Parts]) -> None:
        """The shipped optimizer does what it is for."""
        engine = Engine(*make(), outer_steps=self.falling_steps)
        values = [float(feedback.value) for _, feedback in engine]
        before, after = self.progress(values, engine.optimizer)
        assert after < before

    def progress(self, values: Sequence[float], optimizer: OuterOptimizer) -> tuple[float, float]:
        """Return the meta-objective before and after, from its values along the run.

        For an optimizer that keeps the best of its trials: the first value and the lowest one;
        for others: the means of the first and of the last quarter.
        """
        if isinstance(optimizer, (Search, Random, Grid)):
            return values[0], min(values)
        quarter = max(1, len(values) // 4)
        return sum(values[:quarter]) / quarter, sum(values[-quarter:]) / quarter


class EstimatorContract(RunContract):
    """What an estimator promises on a problem it is meant for."""

    def test_outer_is_left_alone(self, make: Callable[[], Parts]) -> None:
        """An estimator may update `inner` in place, never `outer`."""
        parts = make()
        loop, outer, inner = _start(parts)
        before = tree.clone(outer)
        parts[1](loop, outer, inner, 3)
        assert identical(outer, before)

    def test_inner_level_advances(self, make: Callable[[], Parts]) -> None:
        """The state that comes back differs from the start and takes another run."""
        parts = make()
        loop, outer, inner = _start(parts)
        before = tree.clone(inner)
        inner, _ = parts[1](loop, outer, inner, 3)
        after = tree.clone(inner)
        assert not identical(before, after)
        inner, _ = parts[1](loop, outer, inner, 4)
        assert not identical(inner, after)

    def test_cost_is_charged(self, make: Callable[[], Parts]) -> None:
        """A step costs something, in known units."""
        engine = Engine(*make(), outer_steps=1)
        assert len(list(engine)) == 1
        assert sum(engine.ledger.spent.values()) > 0


class OptimizerContract(RunContract):
    """What an outer optimizer promises on a problem it is meant for."""

    def test_ask_is_a_function_of_state_and_key(self, make: Callable[[], Parts]) -> None:
        """Asking again before telling gives the same, and so does an equal optimizer."""
        one, two = self.trained(make), self.trained(make)
        first = tree.clone(one.ask(7))
        assert identical(one.ask(7), first)
        assert identical(two.ask(7), first)

    def test_state_is_all_there_is(self, make: Callable[[], Parts]) -> None:
        """A new optimizer with the state of another proposes the same."""
        one = self.trained(make)
        problem, _, two = make()
        two.init(problem.init_outer(generator(0)))
        two.load_state_dict(tree.clone(one.state_dict()))
        assert identical(two.solution, one.solution)
        assert identical(two.ask(7), one.ask(7))

    def test_solution_has_the_form_of_the_outer_variable(self, make: Callable[[], Parts]) -> None:
        """From the start on, the solution can stand where the problem's first one stood."""
        problem, _, fresh = make()
        outer = problem.init_outer(generator(0))
        fresh.init(outer)
        for solution in (fresh.solution, self.trained(make).solution):
            assert form(solution) == form(outer)

    def trained(self, make: Callable[[], Parts]) -> OuterOptimizer:
        """Return an optimizer after a short run."""
        engine = Engine(*make(), outer_steps=self.outer_steps)
        assert len(list(engine)) == self.outer_steps
        return engine.optimizer


def _copy(feedback: Feedback) -> dict[str, Any]:
    return tree.clone(vars(feedback))  # tensors may be updated in place by the next step


def _run(parts: Parts, steps: int) -> list[Any]:
    engine = Engine(*parts, outer_steps=steps)
    feedback = [_copy(f) for _, f in engine]
    return [feedback, tree.clone(engine.state_dict())]


@contextmanager
def _recorded(parts: Parts, folder: Path) -> Iterator[Parts]:
    """Let the problem keep its own records, where it keeps any, next to `folder`."""
    records = parts[0].records
    if records is None:
        yield parts
        return
    records.open(folder)
    try:
        yield parts
    finally:
        records.close()


def _start(parts: Parts) -> tuple[InnerLoop | BlackBoxLoop, Any, Any]:
    loop = loop_of(parts[0])
    outer = parts[0].init_outer(generator(fold(0, "outer")))
    return loop, outer, loop.start(outer, None, 1)


def _step(loop: InnerLoop | BlackBoxLoop, outer: Any, inner: Any) -> Any:
    # A gradient problem's step gives its argument away; a black box's is left as it was.
    return loop.run(outer, tree.clone(inner) if isinstance(loop, InnerLoop) else inner, 5, 1)
