"""Meta-batches of tasks against plain autograd loops and torch.func, on the same batches."""

import pytest
import torch
from sinusoids import STEPS, TASKS, Sinusoids, assert_near, hypergradient, mean_of_singles

from metaopt import SGD, Adam, Descent, Draw, Engine, epoch_batch
from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
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


@pytest.mark.parametrize(
    "make", [lambda tasks=1: FirstOrder(STEPS, tasks=tasks),
             lambda tasks=1: Implicit(Identity(), STEPS, any_start=True, tasks=tasks)]
)  # fmt: skip
def test_an_optimizer_by_step_is_none_of_phi_for_several_tasks(make):
    problem = Sinusoids(lambda outer, step: SGD(lr=0.1 / (1 + step)), proximal=0.5)
    loop, _, feedback = hypergradient(problem, make(TASKS))
    assert loop.meta_batches[TASKS].runs
    _, wanted = mean_of_singles(problem, make)
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
    chosen = {}

    class Fixed(Sinusoids):
        def inner_batch(self, draw):
            if draw.use == "outer":
                place = draw.outer_step, draw.task_index
                chosen[place] = int(epoch_batch(6, TASKS, draw.outer_step, 0)[draw.task_index])
            return super().inner_batch(draw)

        outer_batch = inner_batch

    engine = Engine(Fixed(), Unroll(1, tasks=TASKS), Descent(lr=0.1), outer_steps=2)
    chosen.clear()
    list(engine)
    assert sorted(chosen.values()) == list(range(6))


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
