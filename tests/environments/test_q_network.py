"""Stacked networks against torch.nn, autograd and torch.optim; deep Q-learning on top of them."""

import pytest
import torch
from torch import nn

from metaopt.engine.random import generator
from metaopt.environments.q_network import QNetwork
from metaopt.environments.stacked import StackedAdam, StackedMLP
from metaopt.environments.transitions import Batch

R, B = 3, 7


def module_of(mlp, flat, run):
    """The same network as a torch module."""
    parts = []
    for layer in mlp.layers(flat):
        linear = nn.Linear(*layer.weight.shape[1:], dtype=flat.dtype)
        linear.weight.data = layer.weight[run].mT.clone()
        linear.bias.data = layer.bias[run, 0].clone()
        parts.append(linear)
        if layer.gain is not None:
            norm = nn.LayerNorm(layer.gain.shape[-1], dtype=flat.dtype)
            norm.weight.data, norm.bias.data = (
                layer.gain[run, 0].clone(),
                layer.offset[run, 0].clone(),
            )
            parts.append(norm)
        parts.append(nn.ReLU())
    return nn.Sequential(*parts[:-1])


def grads_of(module):
    """Its gradient in the order of a stacked network's layers."""
    grads = []
    for part in module:
        if isinstance(part, nn.Linear):
            grads += [part.weight.grad.mT.reshape(-1), part.bias.grad]
        elif isinstance(part, nn.LayerNorm):
            grads += [part.weight.grad, part.bias.grad]
    return torch.cat(grads)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("sizes", [(4, 3), (4, 8, 3), (5, 16, 9, 2)])
def test_stacked_networks_equal_single_ones(sizes, normalise):
    mlp = StackedMLP(sizes, normalise)
    draw = generator(0)
    flat = mlp.init(R, draw, torch.float64)
    flat += 0.1 * torch.randn(flat.shape, generator=draw, dtype=flat.dtype)
    x = torch.randn(R, B, sizes[0], generator=draw, dtype=flat.dtype)
    slope = torch.randn(R, B, sizes[-1], generator=draw, dtype=flat.dtype)
    layers, grad = mlp.layers(flat), torch.full_like(flat, torch.nan)
    out, tape = mlp.forward(layers, x)
    mlp.backward(layers, tape, slope, mlp.layers(grad))
    torch.testing.assert_close(mlp(layers, x), out)
    assert flat.shape == (R, mlp.size)
    for run in range(R):
        module = module_of(mlp, flat, run)
        expected = module(x[run])
        torch.testing.assert_close(out[run], expected)
        (expected * slope[run]).sum().backward()
        torch.testing.assert_close(grad[run], grads_of(module))


def test_initial_weights_are_those_of_linear_layers():
    mlp = StackedMLP((16, 32, 2))
    first, second = mlp.layers(mlp.init(200, generator(0)))
    for layer, fan_in in ((first, 16), (second, 32)):
        bound = fan_in**-0.5
        assert float(layer.weight.abs().max()) <= bound
        assert float(layer.weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
        assert float(layer.bias.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_adam_equals_torchs_and_leaves_masked_rows_alone():
    """Row r takes a step when mask[t][r] is 1, and follows its own torch.optim.Adam."""
    draw = generator(1)
    adam, flat = StackedAdam(1e-2), torch.randn(R, 11, generator=draw, dtype=torch.float64)
    state = adam.init(flat)
    rows = [nn.Parameter(row.clone()) for row in flat]
    theirs = [torch.optim.Adam([row], lr=1e-2) for row in rows]
    for t in range(30):
        grad = torch.randn(R, 11, generator=draw, dtype=torch.float64)
        active = (torch.rand(R, 1, generator=draw) < 0.6).double() if t % 2 else torch.ones(R, 1)
        before = [flat.clone(), *(t.clone() for t in state)]
        for r in range(R):
            if active[r]:
                rows[r].grad = grad[r].clone()
                theirs[r].step()
        adam.step_(adam.views(flat, grad.clone(), state), active if t % 2 else None)
        torch.testing.assert_close(flat, torch.stack([row.data for row in rows]))
        still = active[:, 0] == 0
        for old, new in zip(before, [flat, *state], strict=True):
            assert torch.equal(old[still], new[still])
    assert len({int(c) for c in state.steps}) > 1


def batch(draw, observation_size=4, actions=3, dtype=torch.float64):
    shape = (R, B)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype)

    return Batch(
        normal(*shape, observation_size),
        torch.randint(actions, shape, generator=draw),
        3 * normal(*shape),
        normal(*shape, observation_size),
        (torch.rand(shape, generator=draw) < 0.3).to(dtype),
    )


@pytest.mark.parametrize(("clip", "scale"), [(None, 1.0), (None, 2.0), (1.0, 1.0)])
def test_q_learning_gradient_equals_autograd(clip, scale):
    network = QNetwork(4, 3, (8, 6), gamma=0.9, clip=clip, scale=scale)
    draw = generator(2)
    state = network.init(R, draw)
    state = state._replace(
        params=state.params.double(), target=network.mlp.init(R, draw, torch.float64)
    )
    data, at = batch(draw), network.views(state)
    targets = network.targets(at, data)
    errors = network.gradient(at, data.observation, data.action, targets)
    for run in range(R):
        online, target = (
            module_of(network.mlp, flat, run) for flat in (state.params, state.target)
        )
        with torch.no_grad():
            after = target(data.next_observation[run])
            best = after[torch.arange(B), online(data.next_observation[run]).argmax(1)]
            goal = data.reward[run] + 0.9 * (1 - data.terminal[run]) * best
        values = online(data.observation[run])[torch.arange(B), data.action[run]]
        if clip is None:
            loss = scale * ((values - goal) ** 2 / 2).mean()
        else:
            loss = nn.functional.huber_loss(values, goal, delta=clip)
        loss.backward()
        torch.testing.assert_close(targets[run], goal)
        torch.testing.assert_close(errors[run], (values - goal).detach())
        torch.testing.assert_close(at.adam.grad[run], grads_of(online))


def test_each_learner_copies_its_target_after_its_own_count():
    network = QNetwork(4, 3, (8,), target_update_every=3)
    draw = generator(3)
    state = network.init(R, draw)
    at = network.views(state)
    counts, before = [0] * R, state.target.clone()
    for step in range(12):
        active = torch.tensor([[1.0], [step % 2], [0.0]])
        network.update_(at, batch(draw, dtype=torch.float32), active)
        for run in range(R):
            counts[run] += int(active[run])
            copied = active[run] and counts[run] % 3 == 0
            expected = state.params[run] if copied else before[run]
            assert torch.equal(state.target[run], expected)
        before = state.target.clone()
    assert state.moments.steps.flatten().tolist() == counts == [12, 6, 0]


def test_values_of_a_chain_are_found():
    """Two states in a line, one way to a reward of 1: Q is 1 at the end and gamma before it."""
    network = QNetwork(2, 2, (16,), gamma=0.8, lr=1e-2, target_update_every=20)
    state = network.init(4, generator(0))
    at, draw = network.views(state), generator(1)
    eye = torch.eye(2)
    for _ in range(600):
        place = torch.randint(2, (4, 32), generator=draw)
        action = torch.randint(2, (4, 32), generator=draw)
        ends = (place == 1) & (action == 1)
        after = torch.where(action == 1, 1, 0)
        data = Batch(eye[place], action, ends.float(), eye[after], ends.float())
        network.update_(at, data, torch.ones(4, 1))
    values = network.values(at, eye.expand(4, 2, 2))
    expected = torch.tensor([[0.64, 0.8], [0.64, 1.0]])
    torch.testing.assert_close(values, expected.expand(4, 2, 2), atol=0.03, rtol=0)
    greedy = network.act(at, eye.expand(4, 2, 2), 0.0, draw)
    assert bool((greedy == 1).all())


def test_exploration_has_the_rate_asked_for():
    network = QNetwork(4, 5, (8,))
    draw = generator(0)
    at = network.views(network.init(R, draw))
    x = torch.randn(R, 4000, 4, generator=draw)
    greedy = network.act(at, x, 0.0, draw)
    assert torch.equal(greedy, network.values(at, x).argmax(-1))
    for epsilon in (0.3, 1.0):
        other = (network.act(at, x, epsilon, draw) != greedy).float().mean()
        assert float(other) == pytest.approx(epsilon * 4 / 5, abs=0.02)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StackedMLP((4,)), "two or more sizes"),
        (lambda: StackedMLP((4, 0, 2)), "sizes >= 1"),
        (lambda: StackedAdam(-1.0), "lr >= 0; got lr=-1.0"),
        (lambda: QNetwork(4, 2, gamma=1.5), "gamma=1.5"),
        (lambda: QNetwork(4, 2, target_update_every=0), "target_update_every=0"),
        (lambda: QNetwork(4, 2, clip=0.0), "clip=0.0"),
    ],
)
def test_bad_arguments_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
