"""Networks: sizes, initial values, and the module as a function of named tensors."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metaopt.engine.random import generator
from metaopt.nn import MLP, Network
from metaopt.problems.meta_pseudo_labels.models import ConvNet, Reduced, WideResNet


def test_wide_resnet_28_2_has_its_published_size():
    network = WideResNet((3, 32, 32), 10)
    assert sum(p.numel() for p in network.parameters()) == 1_467_610
    convolutions = [
        m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1
    ]
    assert len(convolutions) == 1 + 3 * 4 * 2
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_paper_network_has_its_initial_range():
    network = MLP((2,), 2, (8, 8), activation="sigmoid", init_range=0.1)
    values = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert len(values) == 2 * 8 + 8 + 8 * 8 + 8 + 8 * 2 + 2
    assert values.abs().max() <= 0.1
    assert values.abs().max() > 0.09


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.second(torch.tanh(self.first(x))))


@pytest.mark.parametrize(
    ("build", "shape"),
    [(Tied, (3,)), (lambda: ConvNet((1, 8, 8), 3), (1, 8, 8)), (lambda: MLP((3,), 2), (3,))],
)
def test_network_equals_functional_call(build, shape):
    network = Network(build)
    x = torch.randn(5, *shape, generator=generator(0))
    tensors = network.init(generator(1))
    copied = {k: v.clone() for k, v in tensors.items()}
    module = build()
    assert torch.equal(network.train(tensors, x), functional_call(module, copied, (x,)))
    assert all(torch.equal(tensors[k], copied[k]) for k in tensors)
    module.eval()
    assert torch.equal(network.evaluate(tensors, x), functional_call(module, copied, (x,)))


def test_network_differentiates_with_respect_to_its_tensors_and_puts_its_own_back():
    module = nn.Linear(2, 1)
    network = Network(lambda: module)
    weight = module.weight
    tensors = {k: v.requires_grad_() for k, v in network.init(generator(0)).items()}
    x = torch.ones(1, 2)
    (grad,) = torch.autograd.grad(network.train(tensors, x).sum(), tensors["weight"])
    assert torch.equal(grad, x)
    assert module.weight is weight
    with pytest.raises(RuntimeError):
        network.train(tensors, torch.ones(1, 3))
    assert module.weight is weight


def test_initial_values_are_a_function_of_the_generator():
    network = Network(lambda: MLP((3,), 2))
    torch.manual_seed(0)
    first = network.init(generator(5))
    state = torch.get_rng_state()
    second = network.init(generator(5))
    other = network.init(generator(6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_reduced_starts_at_its_base():
    network = Network(lambda: Reduced((1, 8, 8), 4, lambda s, c: ConvNet(s, c, (4,)), (3,)))
    assert all(name.startswith("head.") for name in network.params)
    assert all(name.startswith("base.") for name in network.buffers)
    tensors = network.init(generator(0))
    x = torch.randn(6, 1, 8, 8, generator=generator(1))
    base = Network(lambda: ConvNet((1, 8, 8), 4, (4,)))
    plain = base.evaluate({k[5:]: v for k, v in tensors.items() if k.startswith("base.")}, x)
    expected = torch.log_softmax(plain, -1)
    assert torch.allclose(network.evaluate(tensors, x), expected)
    assert torch.allclose(network.train(tensors, x), expected)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MLP((2,), 2, activation="step"), "activation"),
        (lambda: MLP((2,), 2, dropout=1.0), "dropout"),
        (lambda: ConvNet((4,), 2), r"\(C, H, W\)"),
        (lambda: ConvNet((1, 8, 8), 2, ()), "channels"),
        (lambda: WideResNet((3, 8, 8), 2, depth=27), "depth"),
        (lambda: WideResNet((64,), 2), r"\(C, H, W\)"),
    ],
)
def test_wrong_settings_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
