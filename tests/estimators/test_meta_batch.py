"""Meta-batches of tasks against plain autograd loops and torch.func, on the same batches."""

import pytest
import torch
from torch.func import functional_call

from metaopt import SGD, Adam, Descent, Draw, Engine, GradientProblem, epoch_batch
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.meta_batch import task_key
from metaopt.estimators import (
    ConjugateGradient,
    Exact,
    FirstOrder,
    Forward,
    Identity,
    Implicit,
    Neumann,
    Unroll,
)

TASKS, STEPS = 3, 2


class Sinusoids(GradientProblem):
    """MAML on a small network; `rates` makes it Meta-SGD, `proximal` iMAML."""

    warm_start = False

    def __init__(self, optimizer=None, rates=False, proximal=0.0):
        self.inner_optimizer = self.learned if rates else optimizer or SGD(lr=0.1)
        self.rates, self.proximal, self.batches = rates, proximal, {}

    def learned(self, outer, step):
        lr = {k: outer[f"rate.{k}"] for k in ("w", "b", "v")}
        return SGD(lr=lr, momentum=outer["momentum"].sigmoid(), clip_norm=2.0)

    def init_outer(self, generator):
        draw = torch.Generator().manual_seed(0)
        shapes = {"w": (1, 3), "b": (3,), "v": (3, 1)}
        phi = {k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in shapes.items()}
        if self.rates:
            phi |= {f"rate.{k}": torch.full_like(v, 0.1) for k, v in phi.items()}
            phi["momentum"] = torch.zeros((), dtype=torch.float64)
        return phi

    def init_params(self, outer, generator):
        return {k: outer[k].clone() for k in ("w", "b", "v")}

    def inner_batch(self, draw):
        amplitude = 0.5 + torch.rand((), generator=draw.task, dtype=torch.float64)
        x = 4 * torch.rand(5, 1, generator=draw.generator, dtype=torch.float64) - 2
        batch = x, amplitude * torch.sin(x)
        self.batches[draw.task_index, draw.use, draw.inner_step] = batch
        return batch

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        loss = self.distance(inner, batch)
        if self.proximal:
            loss = loss + self.proximal * sum(((inner[k] - outer[k]) ** 2).sum() for k in "wbv")
        return loss

    def outer_loss(self, outer, inner, batch):
        return self.distance(inner, batch)

    def distance(self, theta, batch):
        x, y = batch
        return ((torch.tanh(x @ theta["w"] + theta["b"]) @ theta["v"] - y) ** 2).mean()


def hypergradient(problem, estimator, key=0):
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    estimator.check(loop)
    inner, feedback = estimator(loop, outer, loop.start(outer, None, key), key)
    return loop, inner, feedback


def mean_of_singles(problem, make, tasks=TASKS, key=0):
    """Return the means of values and gradients of an estimator's runs, one task at a time."""
    feedbacks = []
    for i in range(tasks):
        loop, outer = InnerLoop(problem), problem.init_outer(None)
        loop.task_index = i
        start = loop.start(outer, None, task_key(key, i))
        feedbacks.append(make()(loop, outer, start, task_key(key, i))[1])
    grad = {
        k: torch.stack([f.grad[k] for f in feedbacks]).mean(0) for k in problem.init_outer(None)
    }
    return torch.stack([f.value for f in feedbacks]).mean(), grad


def assert_near(grad, wanted, rtol=1e-10):
    for name, value in wanted.items():
        torch.testing.assert_close(grad[name], value, rtol=rtol, atol=1e-12)


def by_hand(problem, step):
    """Return F and its derivatives by autograd through `step`, on the batches of the last call."""
    phi = {k: v.requires_grad_() for k, v in problem.init_outer(None).items()}
    total = 0.0
    for i in range(TASKS):
        theta, state = {k: phi[k] for k in "wbv"}, {}
        for k in range(STEPS):
            loss = problem.inner_loss(phi, theta, problem.batches[i, "inner", k])
            slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = step(phi, theta, dict(zip(theta, slopes, strict=True)), state, k + 1)
        total = total + problem.distance(theta, problem.batches[i, "outer", None]) / TASKS
    grads = torch.autograd.grad(total, list(phi.values()))
    return total.detach(), dict(zip(phi, grads, strict=True))


def plain(phi, theta, slopes, state, t):
    return {k: theta[k] - 0.1 * slopes[k] for k in theta}


def meta_sgd(phi, theta, slopes, state, t):
    size = sum((s**2).sum() for s in slopes.values()).sqrt() + 1e-6
    for k, s in slopes.items():
        clipped = s * (2.0 / size).clamp(max=1.0)
        state[k] = phi["momentum"].sigmoid() * state.get(k, 0.0) + clipped
    return {k: theta[k] - phi[f"rate.{k}"] * state[k] for k in theta}


def adam(phi, theta, slopes, state, t):
    new = {}
    for k, s in slopes.items():
        m, v = state.get(k, (0.0, 0.0))
        m, v = 0.9 * m + 0.1 * s, 0.99 * v + 0.01 * s**2
        state[k] = m, v
        new[k] = theta[k] - 0.05 * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
    return new


STEPPED = {
    "maml": ({}, plain),
    "meta-sgd": ({"rates": True}, meta_sgd),
    "adam": ({"optimizer": Adam(lr=0.05, betas=(0.9, 0.99))}, adam),
    "proximal": ({"proximal": 0.3}, plain),
}


@pytest.mark.parametrize("case", STEPPED)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Unroll(STEPS, tasks=TASKS),
        lambda: Unroll(STEPS, segments=2, tasks=TASKS),
        lambda: Forward(STEPS, tasks=TASKS),
    ],
    ids=["unroll", "segments", "forward"],
)
def test_the_derivative_is_that_of_plain_loops_over_tasks(make, case):
    arguments, step = STEPPED[case]
    problem = Sinusoids(**arguments)
    loop, _, feedback = hypergradient(problem, make())
    assert loop.meta_batches[TASKS].runs  # all tasks in one run
    assert set(problem.batches) >= {(i, "inner", k) for i in range(TASKS) for k in range(STEPS)}
    value, wanted = by_hand(problem, step)
    torch.testing.assert_close(feedback.value, value)
    assert_near(feedback.grad, wanted)
    assert feedback.cost["inner_steps"] == TASKS * STEPS


def test_it_is_that_of_torch_func():
    problem = Sinusoids()
    _, _, feedback = hypergradient(problem, Unroll(STEPS, tasks=TASKS))

    def adapted(phi, supports, query):
        theta = phi
        for k in range(STEPS):
            slopes = torch.func.grad(problem.distance)(theta, (supports[0][k], supports[1][k]))
            theta = {n: theta[n] - 0.1 * slopes[n] for n in theta}
        return problem.distance(theta, query)

    def stacked(part, places):
        return torch.stack([problem.batches[place][part] for place in places])

    supports = [
        torch.stack([stacked(part, [(i, "inner", k) for k in range(STEPS)]) for i in range(TASKS)])
        for part in (0, 1)
    ]
    query = [stacked(part, [(i, "outer", None) for i in range(TASKS)]) for part in (0, 1)]
    wanted = torch.func.grad(
        lambda phi: torch.func.vmap(adapted, (None, 0, 0))(phi, supports, query).mean()
    )(problem.init_outer(None))
    assert_near(feedback.grad, wanted)


def test_first_order_is_the_mean_slope_after_adaptation():
    problem = Sinusoids()
    loop, _, feedback = hypergradient(problem, FirstOrder(STEPS, tasks=TASKS))
    assert loop.meta_batches[TASKS].runs
    wanted = tree.zeros_like(problem.init_outer(None))
    for i in range(TASKS):
        theta = problem.init_outer(None)
        for k in range(STEPS + 1):
            theta = {n: t.detach().requires_grad_() for n, t in theta.items()}
            place = (i, "inner", k) if k < STEPS else (i, "outer", None)
            loss = problem.distance(theta, problem.batches[place])
            slopes = torch.autograd.grad(loss, list(theta.values()))
            for n, slope in zip(theta, slopes, strict=True):
                if k < STEPS:
                    theta[n] = theta[n] - 0.1 * slope
                else:
                    wanted[n] += slope / TASKS
    assert_near(feedback.grad, wanted)


@pytest.mark.parametrize(
    "solver",
    [
        Exact(), Identity(), Neumann(4), ConjugateGradient(4), ConjugateGradient(4, tolerance=0.2),
    ],
    ids=["exact", "identity", "neumann", "cg", "cg that stops early"],
)  # fmt: skip
def test_imaml_is_the_mean_of_the_tasks_own_solves(solver):
    problem = Sinusoids(SGD(lr=0.2), proximal=0.5)
    make = lambda: Implicit(solver, 40, any_start=True)  # noqa: E731
    loop, _, feedback = hypergradient(problem, Implicit(solver, 40, True, tasks=TASKS))
    assert loop.meta_batches[TASKS].runs
    value, wanted = mean_of_singles(problem, make)
    torch.testing.assert_close(feedback.value, value)
    assert_near(feedback.grad, wanted, rtol=1e-7)


def test_imaml_solves_the_dense_system_of_each_task():
    problem = Sinusoids(SGD(lr=0.2), proximal=0.5)
    problem.inner_batch = lambda draw: Sinusoids.inner_batch(
        problem, Draw(draw.run_key, run_key=draw.run_key, task_index=draw.task_index)
    )  # the same in each step of a task, so that there is a solution
    problem.outer_batch = lambda draw: Sinusoids.inner_batch(problem, draw)
    _, _, feedback = hypergradient(problem, Implicit(Exact(), 200, True, tasks=2))
    phi, wanted = problem.init_outer(None), 0.0
    names = list(phi)
    sizes = [v.numel() for v in phi.values()]

    def shaped(flat):
        parts = flat.split(sizes)
        return {k: p.view_as(phi[k]) for k, p in zip(names, parts, strict=True)}

    flat = torch.cat([v.flatten() for v in phi.values()])
    for i in range(2):
        support = problem.batches[i, "inner", 0]
        query = problem.batches[i, "outer", None]

        def g(theta, batch=support):
            return problem.distance(shaped(theta), batch) + 0.5 * ((theta - flat) ** 2).sum()

        theta = flat.clone()
        for _ in range(200):
            theta = theta - 0.2 * torch.func.grad(g)(theta)
        v = torch.func.grad(lambda t, batch=query: problem.distance(shaped(t), batch))(theta)
        wanted = wanted + torch.linalg.solve(torch.func.hessian(g)(theta), v) / 2  # J = -I
    assert_near(feedback.grad, shaped(wanted), rtol=1e-8)


class Module(Sinusoids):
    """A module under MAML: BatchNorm, an average of theta that F reads, or what vmap cannot run."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        norm = torch.nn.BatchNorm1d(3) if kind == "batch norm" else torch.nn.Identity()
        drop = torch.nn.Dropout(0.5 if kind == "dropout" else 0.0)
        layers = (torch.nn.Linear(1, 3), norm, torch.nn.Tanh(), drop, torch.nn.Linear(3, 1))
        torch.manual_seed(0)
        self.module = torch.nn.Sequential(*layers).double()

    def init_outer(self, generator):
        return {k: v.detach().clone() for k, v in self.module.named_parameters()}

    def init_params(self, outer, generator):
        return {k: v.clone() for k, v in outer.items()}

    def init_buffers(self, outer, params):
        return dict(self.module.named_buffers())

    def init_state(self, outer, params):
        return {"average": dict(params)}

    def update_state(self, outer, inner, step):
        average = inner.state["average"]
        return {"average": {k: 0.5 * average[k] + 0.5 * inner.params[k] for k in average}}

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


def test_each_task_has_its_own_batches_and_its_own_task():
    problem = Sinusoids()
    hypergradient(problem, Unroll(STEPS, tasks=TASKS))
    amplitudes = {
        place: float((y / torch.sin(x)).mean()) for place, (x, y) in problem.batches.items()
    }
    for i in range(TASKS):
        own = [amplitudes[i, "inner", k] for k in range(STEPS)] + [amplitudes[i, "outer", None]]
        assert own == pytest.approx([own[0]] * 3)
    assert len({round(a, 6) for a in amplitudes.values()}) == TASKS
    assert len({float(x[0]) for x, _ in problem.batches.values()}) == TASKS * (STEPS + 1)


def test_tasks_without_replacement():
    chosen = []

    class Fixed(Sinusoids):
        def inner_batch(self, draw):
            if draw.use == "outer":
                chosen.append(int(epoch_batch(6, TASKS, draw.outer_step, 0)[draw.task_index]))
            return super().inner_batch(draw)

        outer_batch = inner_batch

    engine = Engine(Fixed(), Unroll(1, tasks=TASKS), Descent(lr=0.1), outer_steps=2)
    chosen.clear()
    list(engine)
    assert sorted(chosen[-2 * TASKS :]) == list(range(6))


def test_a_warm_start_is_refused():
    class Warm(Sinusoids):
        warm_start = True

    for estimator in (Unroll(2, tasks=4), Forward(2, tasks=4), Implicit(tasks=4)):
        with pytest.raises(
            ValueError, match=r"\(tasks=4\) starts each task from init_params.*Warm"
        ):
            estimator.check(InnerLoop(Warm(proximal=0.1)))
    with pytest.raises(ValueError, match="needs tasks >= 1; got tasks=0"):
        Unroll(2, tasks=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Unroll(STEPS, tasks=TASKS),
        lambda: Implicit(ConjugateGradient(3), STEPS, any_start=True, tasks=TASKS),
    ],
)
def test_a_run_is_continued_to_the_bit(make, tmp_path):
    def engine(steps):
        problem = Sinusoids(proximal=0.5)
        return Engine(problem, make(), Descent("adam", lr=0.01), outer_steps=steps)

    whole, first, rest = engine(4), engine(2), engine(4)
    list(whole)
    list(first)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    rest.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    list(rest)
    for name, value in whole.optimizer.solution.items():
        assert torch.equal(value, rest.optimizer.solution[name])
