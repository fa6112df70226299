"""Few-shot learning: each method against torch.func, in double precision."""

import itertools

import pytest
import torch
from torch.func import grad, hessian, vmap

from metaopt import SGD, Descent, Engine
from metaopt.engine import tree
from metaopt.engine.adaptation import distance
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.meta_batch import task_key
from metaopt.engine.random import generator
from metaopt.estimators import ConjugateGradient, Exact, FirstOrder, Implicit, Reptile, Unroll
from metaopt.problems.few_shot import FewShot, Sinusoids
from metaopt.testing import ProblemContract

TASKS, STEPS, LR = 4, 3, 0.03
SHOTS = 6


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Recorded(FewShot):
    """Keeps the tasks that it drew."""

    def inner_batch(self, draw):
        task = super().inner_batch(draw)
        vars(self).setdefault("drawn", {})[draw.task_index, draw.use, draw.inner_step] = task
        return task

    outer_batch = inner_batch


def problem(**settings):
    settings = {"inner_optimizer": SGD(lr=LR), "widths": (8, 5), **settings}
    return Recorded(Sinusoids(shots=SHOTS, queries=7, test_tasks=12), **settings)


def hypergradient(stated, estimator, key=5):
    """Return phi, the feedback and the tasks (B, 2 + points) that the estimator drew."""
    loop, phi = InnerLoop(stated), stated.init_outer(generator(1))
    estimator.check(loop)
    vars(stated)["drawn"] = {}
    feedback = estimator(loop, phi, loop.start(phi, None, key), key)[1]
    tasks = torch.stack([stated.drawn[i, "outer", None] for i in range(TASKS)])
    return phi, feedback, tasks


# What the paper says, written down again.


def network(weights, x):
    hidden = x @ weights["layer1.weight"] + weights["layer1.bias"]
    for i in (2, 3):
        hidden = torch.nn.functional.linear(
            torch.clamp(hidden, min=0), weights[f"layer{i}.weight"].T, weights[f"layer{i}.bias"]
        )
    return hidden


def squared_error(weights, task, part):
    x = task[2:][part]
    y = task[0] * (x.sin() * task[1].cos() - x.cos() * task[1].sin())
    return (network(weights, x[:, None])[:, 0] - y).pow(2).mean()


SUPPORT, QUERY = slice(0, SHOTS), slice(SHOTS, None)


def adapted(phi, task, adapts=("layer1", "layer2", "layer3")):
    theta = phi
    for _ in range(STEPS):
        slope = grad(squared_error)(theta, task, SUPPORT)
        theta = {k: v - LR * slope[k] if k.split(".")[0] in adapts else v for k, v in theta.items()}
    return theta


def mean_query_error(phi, tasks, **settings):
    one = lambda task: squared_error(adapted(phi, task, **settings), task, QUERY)  # noqa: E731
    return vmap(one)(tasks).mean()


def assert_near(computed, wanted, tolerance=1e-10):
    assert list(computed) == list(wanted)
    for name, value in wanted.items():
        assert (computed[name] - value).abs().max() <= tolerance * (1 + value.abs().max())
    assert tree.norm(wanted) > 0.01


def test_maml_is_the_derivative_of_the_adapted_query_error():
    phi, feedback, tasks = hypergradient(problem(), Unroll(STEPS, tasks=TASKS))
    assert_near(feedback.grad, grad(mean_query_error)(phi, tasks))
    torch.testing.assert_close(feedback.value, mean_query_error(phi, tasks))


def test_anil_adapts_the_head_and_learns_the_body():
    phi, feedback, tasks = hypergradient(problem(adapts="head"), Unroll(STEPS, tasks=TASKS))
    wanted = grad(lambda p: mean_query_error(p, tasks, adapts=("layer3",)))(phi)
    assert_near(feedback.grad, wanted)
    frozen_body = SGD(lr=LR, groups=[{"match": "layer[12]", "lr": 0.0}])
    same = hypergradient(problem(inner_optimizer=frozen_body), Unroll(STEPS, tasks=TASKS))[1]
    assert_near(feedback.grad, same.grad)


def test_fomaml_is_the_query_gradient_at_the_adapted_parameters():
    phi, feedback, tasks = hypergradient(problem(), FirstOrder(STEPS, tasks=TASKS))
    slopes = [grad(squared_error)(adapted(phi, task), task, QUERY) for task in tasks]
    assert_near(feedback.grad, {k: sum(s[k] for s in slopes) / TASKS for k in phi})


@pytest.mark.parametrize("estimator", [FirstOrder, Reptile])
def test_tasks_together_are_the_mean_of_single_ones(estimator):
    stated = problem()
    phi, feedback, _ = hypergradient(stated, estimator(STEPS, tasks=TASKS))
    loop, singles = InnerLoop(stated), []
    for i in range(TASKS):
        loop.task_index, key = i, task_key(5, i)
        singles.append(estimator(STEPS)(loop, phi, loop.start(phi, None, key), key)[1].grad)
    assert_near(feedback.grad, {k: sum(s[k] for s in singles) / TASKS for k in phi})


def test_reptile_moves_to_the_mean_of_the_adapted_parameters():
    phi, feedback, tasks = hypergradient(problem(), Reptile(STEPS, tasks=TASKS))
    ends = [adapted(phi, task) for task in tasks]
    assert_near(feedback.grad, {k: phi[k] - sum(e[k] for e in ends) / TASKS for k in phi})


@pytest.mark.parametrize("solve", [Exact(), ConjugateGradient(20, damping=0.0, tolerance=0.0)])
def test_imaml_is_its_closed_form_where_the_support_loss_is_quadratic(solve):
    # A linear network: theta* solves (A + lambda I) theta = c + lambda phi, and
    # dF/dphi = lambda (A + lambda I)^-1 dF/dtheta at theta*.
    proximal = 10.0
    stated = problem(widths=(), proximal=proximal, inner_optimizer=SGD(lr=0.04))
    phi, feedback, tasks = hypergradient(stated, Implicit(solve, 80, any_start=True, tasks=TASKS))
    start = torch.cat([phi["layer1.weight"].flatten(), phi["layer1.bias"]])
    wanted = torch.zeros(2)
    for task in tasks:
        x, y = task[2:], task[0] * torch.sin(task[2:] - task[1])
        rows = torch.stack([x, torch.ones_like(x)], 1)
        support, query = rows[SUPPORT], rows[QUERY]
        matrix = 2 * support.T @ support / SHOTS + proximal * torch.eye(2)
        solution = torch.linalg.solve(matrix, 2 * support.T @ y[SUPPORT] / SHOTS + proximal * start)
        slope = 2 * query.T @ (query @ solution - y[QUERY]) / len(query)
        wanted += proximal * torch.linalg.solve(matrix, slope) / TASKS
    assert_near({"phi": torch.cat([t.flatten() for t in feedback.grad.values()])}, {"phi": wanted})


def test_imaml_solves_the_dense_system_where_its_steps_end():
    stated = problem(proximal=2.0)
    phi, feedback, tasks = hypergradient(stated, Implicit(Exact(), STEPS, True, tasks=TASKS))
    sizes = [v.numel() for v in phi.values()]
    start = torch.cat([v.flatten() for v in phi.values()])

    def shaped(flat):
        return {k: p.view_as(phi[k]) for k, p in zip(phi, flat.split(sizes), strict=True)}

    def g(flat, task):
        return squared_error(shaped(flat), task, SUPPORT) + (flat - start).pow(2).sum()

    wanted = 0.0
    for task in tasks:
        theta = start
        for _ in range(STEPS):
            theta = theta - LR * grad(g)(theta, task)
        slope = grad(lambda t, task=task: squared_error(shaped(t), task, QUERY))(theta)
        wanted = wanted + 2.0 * torch.linalg.solve(hessian(g)(theta, task), slope) / TASKS
    assert_near(feedback.grad, shaped(wanted), 1e-9)


def test_conjugate_gradients_have_step_lengths_of_each_task():
    solve = ConjugateGradient(4)
    stated = problem(proximal=1.0)
    phi, feedback, _ = hypergradient(stated, Implicit(solve, STEPS, True, tasks=TASKS))
    loop, singles = InnerLoop(stated), []
    for i in range(TASKS):
        loop.task_index, key = i, task_key(5, i)
        alone = Implicit(solve, STEPS, True)
        singles.append(alone(loop, phi, loop.start(phi, None, key), key)[1])
    assert_near(feedback.grad, {k: sum(s.grad[k] for s in singles) / TASKS for k in phi})
    residuals = torch.stack([s.metrics["solve/residual"] for s in singles])
    torch.testing.assert_close(feedback.metrics["solve/residual"], residuals.mean())


# The tasks of a run.


def test_the_task_of_each_step_is_that_of_the_first():
    stated = problem()
    hypergradient(stated, Unroll(STEPS, tasks=TASKS))
    for i in range(TASKS):
        own = [task for (index, *_), task in stated.drawn.items() if index == i]
        assert len(own) == STEPS + 1
        assert all(torch.equal(task, own[0]) for task in own)
    amplitudes = {float(task[0]) for task in stated.drawn.values()}
    assert len(amplitudes) == TASKS
    first = stated.drawn[0, "outer", None]
    hypergradient(stated, Unroll(STEPS, tasks=TASKS), key=6)
    assert not torch.equal(first, stated.drawn[0, "outer", None])


def test_metrics_are_the_errors_of_adapted_test_tasks():
    stated = problem(inner_optimizer=SGD(lr=LR), test_steps=(1, STEPS))
    phi = stated.init_outer(generator(3))
    errors = []
    for task in stated.data.test:
        theta = adapted(phi, task)
        x = torch.linspace(-5, 5, 100)
        y = task[0] * torch.sin(x - task[1])
        errors.append((network(theta, x[:, None])[:, 0] - y).pow(2).mean())
    figures = stated.metrics(phi, None)
    assert list(figures) == ["error_1", f"error_{STEPS}"]
    torch.testing.assert_close(figures[f"error_{STEPS}"], torch.stack(errors).mean())


def test_clipping_on_test_tasks_is_of_each_task():
    stated = problem(inner_optimizer=SGD(lr=LR, clip_norm=0.5))
    phi, tasks = stated.init_outer(generator(3)), stated.data.test
    together = stated.adapted(phi, tasks, 2)[-1]
    for i in (0, 7):
        alone = stated.adapted(phi, tasks[i : i + 1], 2)[-1]
        assert all(torch.allclose(t[i], alone[k][0], 1e-12, 1e-14) for k, t in together.items())


def test_the_proximal_distance_is_that_of_each_task():
    phi = {"a.weight": torch.zeros(2, 3), "a.bias": torch.ones(3), "body.bias": torch.ones(9)}
    theta = {"a.weight": torch.ones(4, 2, 3), "a.bias": torch.full((4, 3), 3.0)}
    assert torch.equal(distance(phi, theta, 1), torch.full((4,), 6.0 + 3 * 4.0))


@pytest.mark.parametrize("tasks", [(), (4,), (2, 4)])
def test_the_proximal_distance_takes_parameters_of_any_shape(tasks):
    shapes = {"conv.weight": (5, 3, 2, 2), "norm.weight": (5,), "lora_a": (2, 5), "scale": ()}
    draw = generator(0)
    phi = {k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in shapes.items()}
    theta = {k: torch.randn((*tasks, *s), generator=draw).double() for k, s in shapes.items()}
    wanted = torch.zeros(tasks, dtype=torch.float64)
    for place in itertools.product(*map(range, tasks)):
        each = [(theta[k][place] - phi[k]).flatten() for k in phi]
        wanted[place] = torch.cat(each).norm() ** 2
    torch.testing.assert_close(distance(phi, theta, len(tasks)), wanted)


class TestSinusoids(ProblemContract):
    @pytest.fixture
    def make(self):
        return lambda: (problem(), Unroll(1, tasks=3), Descent("adam", lr=1e-2))


class TestProximal(ProblemContract):
    @pytest.fixture
    def make(self):
        estimate = Implicit(inner_steps=2, any_start=True, tasks=3)
        return lambda: (problem(proximal=2.0), estimate, Descent("adam", lr=1e-2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapts": "body"}, "adapts to be one of all, head; got adapts='body'"),
        ({"proximal": -1.0}, "proximal >= 0; got proximal=-1.0"),
        ({"widths": (40, 0)}, r"widths to be integers >= 1; got \[40, 0\]"),
        ({"test_steps": ()}, r"test_steps to increase, such as \[1, 5, 10\]; got \(\)"),
        ({"test_steps": (5, 1)}, "test_steps to increase"),
        ({"test_steps": (1, 2.5)}, "test_steps to be integers"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FewShot(Sinusoids(test_tasks=2), **settings)


def test_imaml_without_a_proximal_term_is_refused():
    with pytest.raises(ValueError, match="by a proximal term"):
        Implicit(any_start=True, tasks=2).check(InnerLoop(problem()))


def test_the_figure_shows_adaptation(tmp_path):
    stated = problem()
    phi = stated.init_outer(generator(0))
    last = stated.report.snapshot(phi, None)
    assert last["steps"] == [0, 1, 5, 10]
    assert last["outputs"].shape == (4, 100)
    start = network(phi, torch.linspace(-5, 5, 100)[:, None])[:, 0]
    torch.testing.assert_close(last["outputs"][0], start, rtol=1e-5, atol=1e-6)
    amplitude, phase = stated.data.test[0, :2]
    x, y = last["support"].T
    torch.testing.assert_close(y, amplitude * torch.sin(x - phase))
    (path,) = stated.report.figures([(3, last)], tmp_path)
    assert path.stat().st_size > 10_000
    assert stated.report.figures([], tmp_path) == []


@pytest.mark.slow
def test_a_learned_start_adapts_in_one_step():
    torch.set_default_dtype(torch.float32)
    stated = FewShot()
    engine = Engine(stated, Unroll(tasks=25), Descent("adam", lr=1e-3), outer_steps=400)
    list(engine)
    untrained = stated.metrics(stated.init_outer(generator(0)), None)
    learned = stated.metrics(engine.optimizer.solution, engine.inner)
    assert float(untrained["error_1"]) > 4
    assert float(learned["error_1"]) < 0.8 * float(untrained["error_1"])
    assert float(learned["error_10"]) < float(learned["error_1"])
