"""The two levels as betty's problems; imported only when betty-ml is installed."""

from __future__ import annotations

import logging

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.logging.logger_base import get_logger
from betty.problems import ImplicitProblem
from torch import Tensor
from torch.nn import Parameter, ParameterList

from metaopt.engine import tree
from metaopt.engine.gradient_problem import Batch, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, generator
from metaopt.estimators.constants import Constants, RecordDetached, ReplayDetached
from metaopt.estimators.implicit import inner_slope


class _Level(ImplicitProblem):  # type: ignore[misc]
    """Named tensors as the module of a betty problem; its optimizer is never stepped."""

    def __init__(self, name: str, values: Tree, config: Config) -> None:
        self.values: Tree = {k: Parameter(v.detach().clone()) for k, v in values.items()}
        module = ParameterList(self.values.values())
        idle = torch.optim.SGD(module.parameters(), lr=0.0)
        super().__init__(name, config, module=module, optimizer=idle)

    def take(self, values: Tree) -> None:
        """Read and write the memory of `values` from now on."""
        # betty keeps the parameters it was built with, so the values come to them, without a copy.
        for name, parameter in self.values.items():
            parameter.data = values[name]

    def gradients(self) -> Tree:
        """Return what betty left on the parameters."""
        return {
            k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in self.values.items()
        }


class Lower(_Level):
    """The inner level: one inner step, or the loss of a hypergradient, as betty asks."""

    upper: Upper
    state: GradientState
    loss: Tensor
    key: int

    def __init__(self, loop: InnerLoop, values: Tree, config: Config, relative: bool) -> None:
        super().__init__("lower", values, config)
        self.loop, self.steps, self.stepping = loop, 0, False
        self.epsilon = config.darts_alpha if relative else None
        self.saved: Tree = {}
        self.batch: Batch = None
        self.constants: Constants | None = None

    def start(self, state: GradientState, key: int) -> None:
        """Begin an inner run from `state`.

        It may be modified in place; do not use it afterwards.
        """
        self.take(state.params)
        self.state, self.key, self.steps = state, key, 0

    def get_batch(self) -> Draw:
        """Return which batch the next inner step takes."""
        self.steps, self.stepping = self.steps + 1, True
        return self.loop.draw(self.state, self.key, self.steps - 1)

    def training_step(self, batch: Draw) -> Tensor:
        """Return g: of the step that `get_batch` announced, later for the hypergradient."""
        # betty calls this for both and does not say which; a step fetches a batch first.
        if self.stepping:
            self.stepping = False
            self.loss = self._value(self.state._replace(params=self.values), batch)
            return self.loss
        at = self.state.at(self.values)
        if self.constants is None:
            return self._value(at, self._solve_draw)
        with ReplayDetached(self.constants):
            return self._value(at, self._solve_draw, self.batch)

    def record(self) -> None:
        """Before a finite difference: keep theta, and what g treats as constant there."""
        self.saved = tree.clone(self.state.params)
        if self.epsilon is not None:
            self.config.darts_alpha = self.epsilon * float(tree.norm(self.saved))
        outer, copied = tree.detach(self.upper.values), self.state.at(self.state.params)
        self.batch = self.loop.batch(outer, copied, self._solve_draw)
        at = self.state.at(self.values)
        with RecordDetached() as recorder:
            self._value(at, self._solve_draw, self.batch)
        self.constants = recorder.constants

    def restore(self) -> None:
        """After a finite difference: put theta back, which betty does up to round-off."""
        if self.saved:
            torch._foreach_copy_(list(self.state.params.values()), list(self.saved.values()))
        self.saved, self.constants = {}, None

    @property
    def _solve_draw(self) -> Draw:
        return self.loop.solve_draw(self.state, self.key, self.steps)

    def _value(self, inner: GradientState, draw: Draw, batch: Batch = None) -> Tensor:
        return self.loop.inner_value(self.upper.values, inner, draw, batch)

    def custom_optimizer_step(self) -> None:
        """Step the problem's inner optimizer."""
        outer = tree.detach(self.upper.values)
        self.state = self.loop.step_along(outer, self.state, self.gradients(), self.loss)


class Upper(_Level):
    """The outer level: F, and the hypergradient in place of a step."""

    lower: Lower
    value: Tensor
    grad: Tree

    def __init__(self, loop: InnerLoop, values: Tree, config: Config) -> None:
        super().__init__("upper", values, config)
        self.loop = loop

    def get_batch(self) -> Draw:
        """Return which outer batch is taken."""
        return self.loop.outer_draw(self.lower.state, self.lower.key)

    def training_step(self, batch: Draw) -> Tensor:
        """Return F."""
        if self.lower.config.type == "darts":
            self.lower.record()
        at = self.lower.state._replace(params=self.lower.values)
        loss = self.loop.outer_value(self.values, at, batch)
        self.value = loss.detach()
        return loss

    def custom_optimizer_step(self) -> None:
        """Keep the hypergradient."""
        self.grad = self.gradients()


class Pair:
    """Both levels under betty's engine.

    Args:
        loop: the inner level.
        outer, inner: a phi and an inner state; names, shapes and devices of those to come.
        config: betty's settings of the inner level.
        relative: whether the radius of `darts` is times |theta|.
    """

    def __init__(
        self, loop: InnerLoop, outer: Tree, inner: GradientState, config: Config,
        relative: bool,
    ) -> None:  # fmt: skip
        # The outer graph serves two derivatives: the direct one and dF/dtheta.
        self.upper = Upper(loop, outer, Config(retain_graph=True))
        self.lower = Lower(loop, inner.params, config, relative)
        on_cpu = next(iter(outer.values())).device.type == "cpu"
        get_logger().setLevel(logging.WARNING)
        self.engine = Engine(
            problems=[self.upper, self.lower],
            config=EngineConfig(strategy="cpu" if on_cpu else "gpu"),
            dependencies={"u2l": {self.upper: [self.lower]}, "l2u": {self.lower: [self.upper]}},
        )
        self.engine.train()

    def run(
        self, outer: Tree, inner: GradientState, key: int
    ) -> tuple[GradientState, Tensor, Tree]:
        """Return the inner state after the run, F, and the hypergradient."""
        self.upper.take(outer)
        self.lower.start(inner, key)
        try:
            for _ in range(self.lower.config.unroll_steps):
                self.engine.train_step()
        finally:
            self.lower.restore()
        return self.lower.state, self.upper.value, self.upper.grad


def require_curvature(loop: InnerLoop) -> None:
    """Raise a `ValueError` where betty's `neumann` and `cg` would crash.

    It differentiates dg/dtheta in every inner parameter, and one without curvature has no graph.
    """
    outer = loop.problem.init_outer(generator(0))
    inner = loop.start(outer, None, 0)
    theta = tree.leaves(inner.params)
    with twice_differentiable():
        _, slope = inner_slope(loop, tree.leaves(outer), inner.at(theta), Draw(0))
        linked = [s for s in slope.values() if s.requires_grad]
        bends = torch.autograd.grad(
            linked, list(theta.values()), [torch.ones_like(s) for s in linked], allow_unused=True
        )
    pairs = zip(slope.items(), bends, strict=True)
    flat = [k for (k, s), bend in pairs if bend is None or not s.requires_grad]
    if flat:
        raise ValueError(
            f"betty's neumann and cg crash on inner parameters without curvature: "
            f"{', '.join(flat)}. Freeze what g does not use, or use engine=metaopt."
        )
