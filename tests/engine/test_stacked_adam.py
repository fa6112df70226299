import pytest
import torch

from metaopt.engine.inner_optimizers import Adam
from metaopt.engine.random import generator
from metaopt.engine.stacked_adam import StackedAdam


def quadratic(params, target):
    return {k: p - target[k] for k, p in params.items()}


def initial(seed):
    draw = generator(seed)
    return {
        name: torch.randn(shape, generator=draw, dtype=torch.float64)
        for name, shape in (("w", (3, 2, 4)), ("b", (3, 1)))
    }


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_models_of_one_age_step_as_under_adam(decay):
    target = initial(1)
    runs = []
    for optimizer in (
        Adam(lr=0.1, weight_decay=decay), StackedAdam(lr=0.1, weight_decay=decay)
    ):  # fmt: skip
        params, state = initial(0), optimizer.init(initial(0))
        for step in range(5):
            params, state = optimizer.update(params, quadratic(params, target), state, step)
        runs.append(params)
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-12, atol=1e-14)


def test_a_model_that_starts_later_steps_as_one_that_starts_now():
    optimizer, target, adam = StackedAdam(lr=0.1), initial(1), Adam(lr=0.1)
    params = initial(0)
    state = optimizer.init(params)
    for step in range(3):
        optimizer.update_(params, quadratic(params, target), state, step)
    for moment in state.values():
        for value in moment.values():
            value[1] = 0
    fresh = {k: v[1:2].clone() for k, v in params.items()}
    moments, aim = adam.init(fresh), {k: v[1:2] for k, v in target.items()}
    for step in range(4):
        optimizer.update_(params, quadratic(params, target), state, 3 + step)
        adam.update_(fresh, quadratic(fresh, aim), moments, step)
    for name in fresh:
        torch.testing.assert_close(params[name][1:2], fresh[name], rtol=1e-12, atol=1e-14)
    assert state["age"]["w"].flatten().tolist() == [7, 4, 7]


def test_both_forms_agree_to_the_bit():
    optimizer, target = StackedAdam(lr=0.1, weight_decay=0.1), initial(1)
    new, state = initial(0), optimizer.init(initial(0))
    placed, placed_state = initial(0), optimizer.init(initial(0))
    for step in range(3):
        new, state = optimizer.update(new, quadratic(new, target), state, step)
        optimizer.update_(placed, quadratic(placed, target), placed_state, step)
    assert all(torch.equal(new[k], placed[k]) for k in new)
    assert all(torch.equal(state[m][k], placed_state[m][k]) for m in state for k in new)
