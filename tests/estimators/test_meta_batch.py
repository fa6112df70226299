"""What a meta-batch runs together, and what it runs one task after the other."""

import pytest
import torch
from cases import ForkedAverage
from sinusoids import STEPS, TASKS, Sinusoids, assert_near, hypergradient, mean_of_singles
from torch.func import functional_call

from metaopt import SGD, Descent, Engine
from metaopt.engine import tree
from metaopt.engine.stacked import BatchedLossError
from metaopt.estimators import ConjugateGradient, FirstOrder, Forward, Implicit, Unroll


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


class Batched(Sinusoids):
    """The same losses for any axes in front; `mixes` and `sums` are mistakes."""

    batched_losses = True

    def __init__(self, mixes=False, sums=False, shift=0.0, **settings):
        super().__init__(**settings)
        self.mixes, self.sums, self.shift = mixes, sums, torch.tensor(shift)

    def inner_loss(self, outer, inner, batch):
        loss = self.distance(inner, batch)
        if self.proximal:
            # v has two axes of its own, b one, and a scalar none
            gaps = {k: (inner[k] - outer[k]).square() for k in "wbv"}
            parts = [gaps["w"].sum((-2, -1)), gaps["b"].sum(-1), gaps["v"].sum((-2, -1))]
            loss = loss + self.proximal * sum(parts)
        return loss

    def distance(self, theta, batch):
        x, y = batch
        hidden = torch.tanh(x @ theta["w"] + theta["b"].unsqueeze(-2))
        errors = (hidden @ theta["v"] - y - self.shift[..., None, None]) ** 2
        if self.mixes:
            errors = errors * errors.mean(0, keepdim=True)
        return errors.mean() if self.sums else errors.mean((-2, -1))


class Mapped(Batched):
    batched_losses = False


ESTIMATORS = {
    "unroll": lambda: Unroll(STEPS, tasks=TASKS),
    "forward": lambda: Forward(STEPS, tasks=TASKS),
    "first order": lambda: FirstOrder(STEPS, tasks=TASKS),
    "cg": lambda: Implicit(ConjugateGradient(3), STEPS, any_start=True, tasks=TASKS),
}


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_losses_with_axes_of_members_need_no_vmap(name, clip, monkeypatch):
    settings = {"proximal": 0.5, "optimizer": SGD(lr=0.1, clip_norm=clip)}
    wanted = hypergradient(Mapped(**settings), ESTIMATORS[name]())[2]
    if clip is None and name != "forward":  # which maps its tangents

        def refuse(*args, **kwargs):
            raise AssertionError("vmap was called")

        monkeypatch.setattr("metaopt.engine.meta_batch.vmap", refuse)
    loop, _, feedback = hypergradient(Batched(**settings), ESTIMATORS[name]())
    assert loop.meta_batches[TASKS].runs
    torch.testing.assert_close(feedback.value, wanted.value)
    assert_near(feedback.grad, wanted.grad)


@pytest.mark.parametrize("name", ["unroll", "cg"])
def test_seeds_and_tasks_need_no_vmap_either(name):
    def solution(kind):
        problems = [kind(proximal=0.5, shift=0.1 * seed) for seed in (1, 2)]
        engine = Engine(problems, ESTIMATORS[name](), Descent(lr=0.1), outer_steps=2, seeds=[1, 2])
        list(engine)
        return engine.optimizer.solution

    wanted = solution(Mapped)
    assert_near(solution(Batched), wanted)
    assert not torch.allclose(wanted["v"][0], wanted["v"][1])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"mixes": True}, "Batched has other losses for 3 tasks together than for each alone"),
        (
            {"sums": True},
            r"Batched.inner_loss must return the loss of each member, of shape \(3,\)",
        ),
    ],
)
def test_losses_that_mix_members_are_refused(mistake, message):
    with pytest.raises(BatchedLossError, match=message):
        hypergradient(Batched(**mistake), Unroll(STEPS, tasks=TASKS))


def test_a_start_that_is_drawn_is_that_of_each_task():
    class Drawn(Sinusoids):
        def init_params(self, outer, generator):
            start = super().init_params(outer, generator)
            noise = torch.rand((), generator=generator, dtype=torch.float64)
            return start | {"b": start["b"] + noise}

    loop, _, feedback = hypergradient(Drawn(), Unroll(STEPS, tasks=TASKS))
    assert loop.meta_batches[TASKS].runs
    assert_near(feedback.grad, mean_of_singles(Drawn(), lambda: Unroll(STEPS))[1])
    start = loop.meta_batches[TASKS].initial(Drawn().init_outer(None), 0)
    assert len(start.params["b"][:, 0].unique()) == TASKS
