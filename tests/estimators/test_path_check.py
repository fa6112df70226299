"""What a problem cuts or comes to read during a run is refused, by looks that change nothing."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metaopt import SGD, GradientProblem
from metaopt.engine import Engine, tree
from metaopt.engine.gradient_problem import split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import generator
from metaopt.estimators import (
    FiniteDifference,
    Forward,
    Implicit,
    OneStep,
    Penalty,
    Sama,
    Soba,
    Unroll,
    path_check,
)
from metaopt.optimizers import Descent

START = 3
"""The outer step, from 0, at which something changes; the look after it is before step 4."""


class Changing(GradientProblem):
    """Learned weights, decay and rates for a network with BatchNorm, changing at `START`.

    Args:
        change: statistics, which g then reads; part, a tensor of phi that g then detaches; rate,
            which is then read as a float; early, rates that then decide the first steps of a run.
        dropout: of the network.
        warm: whether a run starts where the last one ended.
        steps: inner steps of an outer step.
    """

    def __init__(self, change, dropout=0.0, warm=True, steps=1):
        self.change, self.warm_start, self.start = change, warm, START * steps
        self.steps = steps
        draw = generator(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = nn.Sequential(
                nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(dropout), nn.Linear(4, 2)
            ).double()
        self.x, self.xv = torch.randn(2, 8, 3, generator=draw, dtype=torch.float64)
        self.y, self.yv = torch.randint(0, 2, (2, 8), generator=draw)

    def inner_optimizer(self, outer, step):
        if self.change not in ("rate", "early"):
            return SGD(lr=0.3)
        rate, late = outer["rates"][0].exp(), step >= self.start
        if self.change == "early" and late and step % self.steps == 0:
            rate = outer["rates"][1].exp()
        return SGD(lr=float(rate.detach()) if self.change == "rate" and late else rate)

    def init_outer(self, generator):
        return {
            "weights": torch.linspace(-1, 1, 4, dtype=torch.float64),
            "decay": torch.tensor(0.1, dtype=torch.float64),
            "rates": torch.tensor([-1.0, -2.0], dtype=torch.float64),
        }

    def init_params(self, outer, generator):
        return split_module(self.module)[0]

    def init_buffers(self, outer, params):
        return split_module(self.module)[1]

    def inner_batch(self, draw):
        late = torch.tensor(draw.outer_step >= START)
        return self.x, self.y, late

    def outer_batch(self, draw):
        return self.xv, self.yv

    def inner_loss(self, outer, inner, batch):
        x, y, late = batch
        outputs, decay = functional_call(self.module.train(), inner, (x,)), outer["decay"]
        if self.change == "statistics" and late:
            outputs = outputs + functional_call(self.module.eval(), inner, (x,))
        if self.change == "part" and late:
            decay = decay.detach()
        losses = F.cross_entropy(outputs, y, reduction="none")
        loss = (outer["weights"].sigmoid().repeat(2) * losses).mean()
        return loss + decay * inner["0.weight"].square().sum()

    def outer_loss(self, outer, inner, batch):
        x, y = batch
        return F.cross_entropy(functional_call(self.module.train(), inner, (x,)), y)


STATISTICS = r"inner_loss of Changing reads '1.running_mean' at outer step 5"
PART = r"a part of the outer variable as it is at outer step 5: .* \(decay \(\)\)"
RATE = r"reads outer\['rates'\], and no derivative leads"
EARLY = r"elements of outer\['rates'\] decide hyperparameters of steps before these alone"
CASES = [
    *(
        ("statistics", e, STATISTICS)
        for e in (Unroll(), Forward(), Implicit(), Soba(), FiniteDifference(), Sama())
    ),
    *(("part", e, PART) for e in (Unroll(), Forward(), Implicit(), OneStep(), Sama())),
    *(("rate", e, RATE) for e in (Unroll(), Forward(), OneStep())),
    ("early", Unroll(3, truncation=2), EARLY),
    ("early", OneStep(3), EARLY),
]


@pytest.mark.parametrize(
    ("change", "estimator", "sentence"), CASES, ids=[f"{c}-{type(e).__name__}" for c, e, _ in CASES]
)
def test_a_path_that_a_run_comes_to_drop_is_refused(change, estimator, sentence):
    problem = Changing(change, steps=estimator.inner_steps)
    engine = Engine(problem, estimator, Descent("sgd", lr=0.1), outer_steps=6)
    with pytest.raises(ValueError, match=sentence):
        list(engine)
    assert engine.outer_step == 4


@pytest.mark.parametrize("several", [{"tasks": 2}, {"seeds": 2}])
def test_members_that_run_together_are_looked_at_too(several):
    tasks, seeds = several.get("tasks", 1), several.get("seeds")
    problem = Changing("part", warm="seeds" in several)
    # Replicates are evaluated by vmap, which reads no number off a tensor.
    problem.inner_batch = lambda draw: (problem.x, problem.y, draw.outer_step >= START)
    engine = Engine(
        problem, Unroll(tasks=tasks), Descent("sgd", lr=0.1), outer_steps=6, seeds=seeds
    )
    with pytest.raises(ValueError, match=PART):
        list(engine)


def test_a_step_of_the_run_after_the_first_may_be_what_reads_statistics():
    class Frozen(Changing):
        """BatchNorm that the third step of each run takes as it is."""

        def inner_batch(self, draw):
            return self.x, self.y, draw.inner_step == 2

        def inner_loss(self, outer, inner, batch):
            x, y, frozen = batch
            outputs = functional_call(self.module.train(not frozen), inner, (x,))
            losses = F.cross_entropy(outputs, y, reduction="none")
            return (outer["weights"].sigmoid().repeat(2) * losses).mean()

    for estimator in (Unroll(3), Forward(3), OneStep(3), Implicit(inner_steps=2)):
        if isinstance(estimator, OneStep):  # its last step alone is differentiated
            estimator.check(InnerLoop(Frozen("nothing")))
            continue
        with pytest.raises(ValueError, match=r"inner_loss of Frozen reads '1.running_mean', which"):
            estimator.check(InnerLoop(Frozen("nothing")))


@pytest.mark.parametrize(
    ("estimator", "seeds"),
    [
        (Unroll(2), None),
        (Implicit(inner_steps=2), None),
        (FiniteDifference(), None),
        (Unroll(2, tasks=2), None),
        (Implicit(), 2),
    ],
)
def test_a_look_changes_no_number(monkeypatch, estimator, seeds):
    ends = []
    for looks in (True, False):
        if not looks:
            monkeypatch.setattr("metaopt.estimators.inner_run.looks_again", lambda step: False)
        problem = Changing(
            "nothing", dropout=0.0 if seeds else 0.3, warm=getattr(estimator, "tasks", 1) == 1
        )
        engine = Engine(problem, estimator, Descent("adam", lr=0.1), outer_steps=5, seeds=seeds)
        torch.manual_seed(5)
        grads = [feedback.grad for _, feedback in engine]
        state = engine.state_dict()
        ends.append([*tree.tensors((grads, state)), torch.rand(3)])
    assert len(ends[0]) == len(ends[1])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def test_looks_are_at_powers_of_two():
    assert [k for k in range(70) if path_check.looks_again(k)] == [1, 2, 4, 8, 16, 32, 64]


class Parts(GradientProblem):
    """Two parts of theta, of which F reads one; `coefficient` enters g as `term` says."""

    inner_optimizer = SGD(lr=0.1)

    def __init__(self, term):
        self.term = term

    def init_outer(self, generator):
        return {
            "weights": torch.zeros(3, dtype=torch.float64),
            "coefficient": torch.tensor(0.3, dtype=torch.float64),
        }

    def init_params(self, outer, generator):
        return {"read": torch.ones(3).double(), "other": torch.ones(3).double()}

    def inner_batch(self, draw):
        return torch.linspace(-1, 1, 3, dtype=torch.float64)

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        loss = (outer["weights"].exp() * (inner["read"] - batch) ** 2).sum()
        return loss + self.term(outer["coefficient"], inner["read"], inner["other"])

    def outer_loss(self, outer, inner, batch):
        return inner["read"].square().sum()


UNREAD = {
    "without theta": lambda c, read, other: c.square(),
    "of another part": lambda c, read, other: c * other.square().sum(),
    "detached": lambda c, read, other: c * read.detach().square().sum(),
}
READ = {
    "of the part": lambda c, read, other: c * read.sum(),
    "of another part that moves it": lambda c, read, other: c * other.sum() + read @ other**2,
    "zero in value": lambda c, read, other: c * (read.sum() * 0).square(),
}


@pytest.mark.parametrize("estimator", [Unroll(3), OneStep(), Implicit()])
@pytest.mark.parametrize("term", [*UNREAD, *READ])
def test_a_part_of_phi_that_moves_nothing_that_the_outer_loss_reads_is_named(term, estimator):
    loop = InnerLoop(Parts({**UNREAD, **READ}[term]))
    if term in READ:
        estimator.check(loop)
        return
    sentence = r"leave a part .* \(coefficient \(\)\) to outer_loss of Parts, nor to what moves"
    with pytest.raises(ValueError, match=sentence):
        estimator.check(loop)


class Opaque(torch.autograd.Function):
    """x^2 / 2, whose gradient has no derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square() / 2

    @staticmethod
    def backward(ctx, grad):
        return grad.detach() * ctx.saved_tensors[0].detach()


@pytest.mark.parametrize("estimator", [FiniteDifference(), Sama(), Penalty()])
def test_differences_of_gradients_take_a_loss_without_second_derivatives(estimator):
    term = lambda c, read, other: Opaque.apply(read - c).sum()  # noqa: E731
    estimator.check(InnerLoop(Parts(term)))


def test_an_outer_loss_of_no_parameter_is_named_or_reads_phi_alone():
    class Detached(Parts):
        def outer_loss(self, outer, inner, batch):
            return inner["read"].detach().square().sum()

    class Direct(Parts):
        def outer_loss(self, outer, inner, batch):
            return outer["coefficient"].square() + outer["weights"].square().sum()

    term = READ["of the part"]
    with pytest.raises(ValueError, match=r"would return 0: .* Look for a detach\(\)"):
        Unroll(3).check(InnerLoop(Detached(term)))
    Unroll(3).check(InnerLoop(Direct(term)))
