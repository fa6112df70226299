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
from metaopt.engine.inner import Batch, GradientProblem, GradientState, twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold
from metaopt.estimators.detached import Constants, RecordDetached, ReplayDetached


class _Level(ImplicitProblem):
    """Named tensors as the module of a betty problem; its optimizer is never stepped."""

    def __init__(self, name: str, values: Tree, config: Config) -> None:
        self.values: Tree = {k: Parameter(v.detach().clone()) for k, v in values.items()}
        module = ParameterList(self.values.values())
        idle = torch.optim.SGD(module.parameters(), lr=0.0)
        super().__init__(name, config, module=module, optimizer=idle)

    def take(self, values: Tree) -> None:
        """Read and write the memory of `values` from now on."""
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
    key: int

    def __init__(
        self, problem: GradientProblem, values: Tree, config: Config, relative: bool
    ) -> None:
        super().__init__("lower", values, config)
        self.problem, self.steps, self.stepping = problem, 0, False
        self.epsilon = config.darts_alpha if relative else None
        self.saved: Tree = {}
        self.batch: Batch = None
        self.constants: Constants | None = None

    def start(self, state: GradientState, key: int) -> None:
        """Begin an inner run from `state`, which is given away."""
        self.take(state.params)
        self.state, self.key, self.steps = state, key, 0

    def get_batch(self) -> int:
        """Return the key of the next inner step."""
        self.steps, self.stepping = self.steps + 1, True
        return fold(self.key, self.steps - 1)

    def training_step(self, batch: int) -> Tensor:
        """Return g: of the step that `get_batch` announced, later for the hypergradient."""
        if self.stepping:
            self.stepping = False
            loss = self._loss(self.state.buffers, batch)
            self.state = self.state._replace(loss=loss.detach())
            return loss
        buffers = tree.clone(self.state.buffers)
        if self.constants is None:
            return self._loss(buffers, self._implicit_key)
        with ReplayDetached(self.constants):
            return self._loss(buffers, self._implicit_key, self.batch)

    def record(self) -> None:
        """Before a finite difference: keep theta, and what g treats as constant there."""
        self.saved = tree.clone(self.state.params)
        if self.epsilon is not None:
            self.config.darts_alpha = self.epsilon * float(tree.norm(self.saved))
        inner = self.state.params | tree.clone(self.state.buffers)
        self.batch = self.problem.draw(tree.detach(self.upper.values), inner, self._implicit_key)
        buffers = tree.clone(self.state.buffers)
        with RecordDetached() as recorder:
            self._loss(buffers, self._implicit_key, self.batch)
        self.constants = recorder.constants

    def restore(self) -> None:
        """After a finite difference: put theta back, which betty does up to round-off."""
        if self.saved:
            torch._foreach_copy_(list(self.state.params.values()), list(self.saved.values()))
        self.saved, self.constants = {}, None

    @property
    def _implicit_key(self) -> int:
        return fold(self.key, "implicit")

    def _loss(self, buffers: Tree, key: int, batch: Batch = None) -> Tensor:
        return self.problem.inner_value(self.upper.values, self.values, buffers, key, batch)

    def custom_optimizer_step(self) -> None:
        """Step the problem's inner optimizer and carry the buffers."""
        state = self.state
        self.problem.inner_optimizer.update_(
            state.params, self.gradients(), state.optimizer, state.step
        )
        with torch.no_grad():
            buffers = self.problem.carry(
                tree.detach(self.upper.values), state.params, state.buffers, state.step + 1
            )
        self.state = state._replace(buffers=buffers, step=state.step + 1)


class Upper(_Level):
    """The outer level: F, and the hypergradient in place of a step."""

    lower: Lower
    value: Tensor
    found: Tree

    def __init__(self, problem: GradientProblem, values: Tree, config: Config) -> None:
        super().__init__("upper", values, config)
        self.problem = problem

    def get_batch(self) -> int:
        """Return the key of the outer batch."""
        return fold(self.lower.key, "outer")

    def training_step(self, batch: int) -> Tensor:
        """Return F."""
        if self.lower.config.type == "darts":
            self.lower.record()
        loss = self.problem.outer_value(
            self.values, self.lower.values, self.lower.state.buffers, batch
        )
        self.value = loss.detach()
        return loss

    def custom_optimizer_step(self) -> None:
        """Keep the hypergradient."""
        self.found = self.gradients()


class Pair:
    """Both levels under betty's engine.

    Args:
        problem: what the levels are.
        outer, inner: a phi and an inner state; names, shapes and devices of those to come.
        config: betty's settings of the inner level.
        relative: whether the radius of `darts` is times |theta|.

    Raises:
        ValueError: `neumann` or `cg` on parameters without curvature, where betty crashes.
    """

    def __init__(
        self, problem: GradientProblem, outer: Tree, inner: GradientState, config: Config,
        relative: bool,
    ) -> None:  # fmt: skip
        if config.type != "darts":
            _require_curvature(problem, outer, inner)
        # The outer graph serves two derivatives: the direct one and dF/dtheta.
        self.upper = Upper(problem, outer, Config(retain_graph=True))
        self.lower = Lower(problem, inner.params, config, relative)
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
        return self.lower.state, self.upper.value, self.upper.found


def _require_curvature(problem: GradientProblem, outer: Tree, inner: GradientState) -> None:
    theta = tree.leaves(inner.params)
    with twice_differentiable():
        loss = problem.inner_value(tree.leaves(outer), theta, tree.clone(inner.buffers), 0)
        found = torch.autograd.grad(
            loss, list(theta.values()), create_graph=True, allow_unused=True
        )
        slopes = [s for s in found if s is not None and s.requires_grad]
        bends = torch.autograd.grad(
            slopes, list(theta.values()), [torch.ones_like(s) for s in slopes], allow_unused=True
        )  # fmt: skip
    linked = [s is not None and s.requires_grad for s in found]
    flat = [k for k, s, bend in zip(theta, linked, bends, strict=True) if not s or bend is None]
    if flat:
        raise ValueError(
            f"betty's neumann and cg crash on inner parameters without curvature: "
            f"{', '.join(flat)}. Freeze what g does not use, or use engine=metaopt."
        )
