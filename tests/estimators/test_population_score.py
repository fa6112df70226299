"""Members trained together are what each is alone, and take over all of another's inner state."""

import pytest
import torch
from torch import nn

from metaopt import Adam, Engine, GradientProblem, NonFiniteError
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.population import member_keys
from metaopt.engine.random import epoch_batch, fold
from metaopt.estimators import PopulationScore
from metaopt.nn.network import Network
from metaopt.optimizers import PopulationBased, Uniform
from metaopt.problems.examples import Knapsack, Ridge, SurrogateQuadratic

SPACE = Uniform(-6.0, 0.0)


class Everything(GradientProblem):
    """BatchNorm, an average of theta, Adam with a learned rate and decay, and minibatches."""

    def __init__(self, dropout=0.0):
        layers = [
            nn.Linear(4, 6),
            nn.BatchNorm1d(6),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(6, 1),
        ]
        self.network = Network(lambda: nn.Sequential(*layers).double())
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(60, 4, generator=draw, dtype=torch.float64)
        self.y = self.x.sin().sum(1)

    def inner_optimizer(self, outer, step):
        return Adam(lr=outer["log_lr"].exp(), weight_decay=outer["log_decay"].exp(), clip_norm=1.0)

    def init_outer(self, generator):
        return {k: torch.tensor(-3.0, dtype=torch.float64) for k in ("log_lr", "log_decay")}

    def _init(self, names, generator):
        made = self.network.init(generator)
        return {k: made[k] for k in names}

    def init_params(self, outer, generator):
        made = self._init(self.network.params, generator)
        return {
            k: torch.randn(v.shape, generator=generator, dtype=v.dtype) / 2 for k, v in made.items()
        }

    def init_buffers(self, outer, params):
        return self._init(self.network.buffers, torch.Generator().manual_seed(0))

    def init_state(self, outer, params):
        return {"average": params["0.bias"].clone()}

    def update_state(self, outer, inner, step):
        return {"average": inner.state["average"].lerp(inner["0.bias"], 0.5)}

    def inner_batch(self, draw):
        chosen = epoch_batch(30, 10, draw.total_inner_step, fold(draw.run_key, "epoch"))
        return self.x[chosen], self.y[chosen]

    def outer_batch(self, draw):
        chosen = 30 + torch.randint(30, (20,), generator=draw.generator)
        return self.x[chosen], self.y[chosen]

    def inner_loss(self, outer, inner, batch):
        x, y = batch
        return ((self.network.train(inner, x).squeeze(1) - y) ** 2).mean()

    def outer_loss(self, outer, inner, batch):
        x, y = batch
        off = inner.state["average"].square().sum() / 10
        return ((self.network.evaluate(inner, x).squeeze(1) - y) ** 2).mean() + off


def close(a, b, rtol=1e-9):
    for x, y in zip(tree.tensors(a), tree.tensors(b), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=1e-11)


@pytest.mark.parametrize("exploit", ["truncation", "tournament"])
def test_each_member_is_the_run_alone_that_goes_on_from_its_parent(exploit):
    problem, steps = Everything(), 4
    search = PopulationBased(members=5, space=SPACE, exploit=exploit)
    engine = Engine(problem, PopulationScore(3), search, outer_steps=steps)
    loop, states, copies = InnerLoop(problem), [None] * 5, 0
    asked, ask = [], search.ask
    search.ask = lambda key: asked.append(ask(key)) or asked[-1]
    for step, feedback in engine:
        members, key = asked[-1], fold(0, step - 1)
        parents, loop.outer_step = members.parents.tolist(), step - 1
        copies += sum(p != i for i, p in enumerate(parents))
        before = [tree.clone(states[p]) for p in parents]
        values = []
        for i, own in enumerate(member_keys(key, 5).each):
            phi = members.of(i)
            states[i] = loop.run(phi, loop.start(phi, before[i], own), own, 3)
            with torch.no_grad():  # all on the outer batch of the outer step
                values.append(loop.outer_value(phi, states[i], loop.outer_draw(states[i], key)))
        values = torch.stack(values)
        close(feedback.artifacts["values"], values)
        best = int(values.argmin())
        close(feedback.value, values[best])
        close(engine.inner, states[best])
        close(search.solution, members.of(best))
    assert copies >= 3
    assert engine.ledger.spent == {"inner_steps": 60, "gradients": 60, "evaluations": 20}


def test_a_copy_has_the_bits_of_its_parent():
    search = PopulationBased(members=5, space=SPACE)
    engine = Engine(Everything(), PopulationScore(2), search, outer_steps=2)
    next(iter(engine))
    estimator = engine.estimator
    states, parents = estimator._states, search.ask(fold(fold(0, 1), "ask")).parents
    assert parents.tolist() != list(range(5))
    after = estimator._population.inherited(states, parents)
    assert (
        sum(t.ndim > 0 for t in tree.tensors(after)) > 20
    )  # parameters, moments, buffers, average
    for old, new in zip(tree.tensors(states), tree.tensors(after), strict=True):
        assert torch.equal(old[parents], new)
        assert new.data_ptr() != old.data_ptr()


class Steep(SurrogateQuadratic):
    """Members with a large h diverge, to NaN or to `far`."""

    far = torch.nan

    def outer_loss(self, outer, inner, batch):
        value = super().outer_loss(outer, inner, batch)
        return torch.where(value > 1e3, self.far, value)


def steep(low, high, steps):
    search = PopulationBased(members=10, space=Uniform(low, high), log=False)
    return Engine(Steep(), PopulationScore(20), search, outer_steps=steps)


@pytest.mark.parametrize("far", [torch.nan, torch.inf])
def test_a_member_that_diverges_goes_on_from_a_good_one(monkeypatch, far):
    monkeypatch.setattr(Steep, "far", far)
    engine, diverged = steep(0.0, 300.0, 4), []
    for _, feedback in engine:
        diverged.append(int(feedback.metrics["population/diverged"]))
        assert torch.isfinite(feedback.value)
        assert int(feedback.artifacts["values"].isinf().sum()) == diverged[-1]
    assert diverged[0] > 2
    assert diverged[-1] < diverged[0]


def test_a_run_ends_where_all_members_have_diverged():
    with pytest.raises(NonFiniteError, match="outer loss is nan at outer step 1"):
        list(steep(300.0, 400.0, 2))


class Fork(Ridge):
    warm_start = False


class Noting(Ridge):
    def observe(self, outer, inner, feedback):
        return inner


class Reading(Ridge):
    def inner_loss(self, outer, inner, batch):
        return super().inner_loss(outer, inner, batch) * (1 + outer["log_penalty"][0].item())


@pytest.mark.parametrize(
    ("problem", "error", "message"),
    [
        (Knapsack, TypeError, "trains the members of a GradientProblem together; Knapsack steps"),
        (Fork, ValueError, "Fork starts each outer step from init_params"),
        (Noting, ValueError, "Noting.observe notes the feedback on one outer variable"),
        (Reading, ValueError, "cannot be evaluated for several members at once"),
        (
            lambda: Everything(dropout=0.5),
            ValueError,
            "several members at once, as where they draw",
        ),
    ],
    ids=["black box", "fork", "observe", "number", "dropout"],
)
def test_problems_whose_members_cannot_be_trained_together_are_refused(problem, error, message):
    with pytest.raises(error, match=message):
        Engine(problem(), PopulationScore(1), PopulationBased(), outer_steps=1)


def test_several_seeds_are_refused():
    with pytest.raises(TypeError, match="PopulationScore cannot train several seeds together"):
        Engine(Ridge(), PopulationScore(1), PopulationBased(), outer_steps=1, seeds=2)
