"""What a meta-batch runs together, and what it runs one task after the other."""

import pytest
import torch
from cases import ForkedAverage
from sinusoids import STEPS, TASKS, Sinusoids, assert_near, hypergradient, mean_of_singles
from torch.func import functional_call

from metaopt.engine import tree
from metaopt.estimators import FirstOrder, Unroll


class Module(ForkedAverage, Sinusoids):
    """A module under MAML: BatchNorm, an average of theta that F reads, or what vmap cannot run."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        norm = torch.nn.BatchNorm1d(3) if kind == "batch norm" else torch.nn.Identity()
        drop = torch.nn.Dropout(0.5 if kind == "dropout" else 0.0)
        torch.manual_seed(0)
        layers = (torch.nn.Linear(1, 3), norm, torch.nn.Tanh(), drop, torch.nn.Linear(3, 1))
        self.module = torch.nn.Sequential(*layers).double()

    def init_outer(self, generator):
        return {k: v.detach().clone() for k, v in self.module.named_parameters()}

    def prepare_batch(self, outer, inner, batch, draw):
        if self.kind != "prepared":
            return batch
        noise = torch.rand(batch[1].shape, generator=draw.generator, dtype=torch.float64)
        self.module(batch[0])  # changes nothing of the inner level
        return batch[0], batch[1] + noise * inner["4.bias"]

    def inner_batch(self, draw):
        x, y = super().inner_batch(draw)
        if self.kind == "ragged":
            return x[: 3 + draw.task_index], y[: 3 + draw.task_index]
        if self.kind == "ragged later" and draw.inner_step == 1:
            return x[: 3 + draw.task_index], y[: 3 + draw.task_index]
        return {"x": x, "rest": (y, "a name", None)} if self.kind == "nested" else (x, y)

    outer_batch = inner_batch

    def distance(self, theta, batch):
        x, y = (batch["x"], batch["rest"][0]) if self.kind == "nested" else batch
        out = functional_call(self.module, dict(theta), (x,))
        if self.kind == "item":
            out = out * float(out.detach().abs().max())
        average = theta.state["average"]["0.weight"] if self.kind == "average" else 0.0
        return ((out - y) ** 2).mean() + (average * theta["0.weight"]).sum()


TOGETHER = {
    "batch norm": True, "average": True, "nested": True, "ragged later": True, "prepared": True,
    "dropout": False, "ragged": False, "item": False,
}  # fmt: skip


@pytest.mark.parametrize("kind", TOGETHER)
def test_tasks_are_as_they_are_alone(kind):
    problem = Module(kind)
    for make in (lambda tasks: Unroll(STEPS, tasks=tasks), lambda t: FirstOrder(STEPS, tasks=t)):
        if kind == "average" and isinstance(make(1), FirstOrder):
            continue
        loop, inner, feedback = hypergradient(problem, make(TASKS))
        assert loop.meta_batches[TASKS].runs == TOGETHER[kind]
        value, wanted = mean_of_singles(problem, lambda make=make: make(1))
        torch.testing.assert_close(feedback.value, value)
        assert_near(feedback.grad, wanted)
        assert float(tree.norm(wanted)) > 0.01
        single = hypergradient(problem, make(1))[1]
        for a, b in zip(tree.tensors(inner), tree.tensors(single), strict=True):
            if a.ndim:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
                assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes()
