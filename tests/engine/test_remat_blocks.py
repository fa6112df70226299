"""Modules with rematerialised blocks against the same modules, in float64."""

import copy

import pytest
import torch
from torch import nn

from metaopt.engine.buffers import RunningStatistics
from metaopt.engine.functional import functional_call
from metaopt.engine.gradient_problem import split_module
from metaopt.engine.kernels import twice_differentiable
from metaopt.engine.random import generator, replay
from metaopt.engine.remat_blocks import remat_blocks


class Stack(nn.Module):
    """Blocks of one width, one after the other, and a head."""

    def __init__(self, *blocks):
        super().__init__()
        self.layers, self.head = nn.ModuleList(blocks), nn.Linear(4, 1)

    def forward(self, x, **kwargs):
        for layer in self.layers:
            x = layer(x, **kwargs)
        return self.head(x)


def linear():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh())


def normed():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Tanh())


def tied():
    blocks = [linear() for _ in range(3)]
    blocks[2][0].weight = blocks[0][0].weight
    return Stack(*blocks)


def frozen():
    blocks = [linear() for _ in range(3)]
    blocks[0].requires_grad_(False)
    blocks[1][0].weight.requires_grad_(False)
    return Stack(*blocks)


def shared():
    """One block twice, and one BatchNorm in all of them."""
    norm, block = nn.BatchNorm1d(4), linear()
    return Stack(nn.Sequential(block, norm), nn.Sequential(normed(), norm), block)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = nn.LSTM(4, 4, 2, dropout=0.3)

    def forward(self, x):
        return self.core(x[None])[0][0]


class Attention(nn.Module):
    """Takes two tensors, a mask as a keyword, and a tuple; returns a dict."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, dropout=0.2)

    def forward(self, x, others, *, mask=None, scale=None):
        y, weights = self.attend(x, *others, attn_mask=mask, need_weights=True)
        return {"y": (y if scale is None else scale * y) + x, "weights": (weights, None)}


class Attended(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Attention(), Attention()])

    def forward(self, x):
        mask = torch.triu(torch.ones(len(x), len(x), dtype=torch.bool, device=x.device), 1)
        for layer in self.layers:
            outputs = layer(x, (x, x.sin()), mask=mask, scale=None)
            x = outputs["y"]
        return x + outputs["weights"][0].sum()


class Spectral(nn.Module):
    """Replaces a buffer, and changes one that is no vector."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("last", torch.zeros(()))
        self.register_buffer("outer", torch.zeros(4, 4))

    def forward(self, x):
        y = self.layer(x) + self.last + x @ self.outer.clone()
        with torch.no_grad():
            self.last = self.last + x.mean()
            self.outer.add_(x.T @ x / len(x))
        return y.tanh()


MODULES = {
    "linear": lambda: Stack(*(linear() for _ in range(3))),
    "batch norm and dropout": lambda: Stack(*(normed() for _ in range(3))),
    "tied": tied,
    "frozen": frozen,
    "shared": shared,
    "recurrent": lambda: Stack(Recurrent(), linear()),
    "arguments": Attended,
    "transformer layer": lambda: Stack(nn.TransformerEncoderLayer(4, 2, 8), linear()),
    "buffers": lambda: Stack(Spectral(), Spectral()),
    "orthogonal": lambda: Stack(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), linear()),
}


def double(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make().double()


def everything(module, train=True, calls=1, device="cpu"):
    """Return outputs, gradients, products, buffers and the generator of a functional call."""
    module.train(train).to(device)
    params, buffers, rest = split_module(module)
    params = {k: v.requires_grad_() for k, v in params.items()}
    x = torch.randn(6, 4, generator=generator(0), dtype=torch.float64).to(device)
    with twice_differentiable(), replay(3):
        outputs = [functional_call(module, params | buffers | rest, (x,)) for _ in range(calls)]
        value = sum(y.sin().sum() for y in outputs)
        leaves = list(params.values())
        grads = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        along = sum(g.sin().sum() for g in grads)
        products = torch.autograd.grad(along, leaves, materialize_grads=True)
        state = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    tensors = {
        "value": [value],
        "grads": grads,
        "products": products,
        "generator": [state.double()],
    }
    return {k: [t.detach() for t in v] for k, v in tensors.items()} | {
        "buffers": [*buffers.values()]
    }


def assert_same(a, b, tolerance=1e-13):
    for name, tensors in a.items():
        size = max((float(t.abs().max()) for t in tensors), default=0.0)
        for x, y in zip(tensors, b[name], strict=True):
            assert torch.allclose(x, y, rtol=0, atol=tolerance * size), name


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_values_gradients_products_and_buffers_are_those_of_the_module(name, train):
    module = double(MODULES[name])
    remat = remat_blocks(copy.deepcopy(module), r"layers\.\d+$")
    assert list(remat.state_dict()) == list(module.state_dict())
    assert_same(everything(module, train), everything(remat, train))


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODULES)
def test_the_same_on_a_gpu_whose_backward_pass_has_a_thread_of_its_own(name):
    module = double(MODULES[name])
    remat = remat_blocks(copy.deepcopy(module), r"layers\.\d+$")
    with torch.backends.cudnn.flags(enabled=False):  # whose LSTM has no second derivative
        assert_same(everything(module, device="cuda"), everything(remat, device="cuda"))


def test_a_module_called_twice_keeps_the_buffers_of_each_call():
    module = double(MODULES["batch norm and dropout"])
    remat = remat_blocks(copy.deepcopy(module), r"layers\.\d+$")
    assert_same(everything(module, calls=2), everything(remat, calls=2))


@pytest.mark.parametrize("pattern", [r"layers\.\d", r"layers\.\d+$|head"])
def test_blocks_inside_blocks_are_the_same(pattern):
    module = double(MODULES["batch norm and dropout"])
    remat = remat_blocks(remat_blocks(copy.deepcopy(module), pattern), pattern)  # twice is once
    assert_same(everything(module), everything(copy.deepcopy(remat)))


def test_statistics_on_the_graph_carry_their_derivative():
    results = []
    for blocks in (False, True):
        module = double(MODULES["batch norm and dropout"]).train()
        if blocks:
            remat_blocks(module, r"layers\.\d+$")
        params, buffers, _ = split_module(module)
        leaves = [v.requires_grad_() for v in params.values()]
        leaves += [v.requires_grad_() for v in buffers.values() if v.is_floating_point()]
        buffers = {k: v.clone() for k, v in buffers.items()}
        x = torch.randn(6, 4, generator=generator(0), dtype=torch.float64)
        with RunningStatistics(), replay(3):
            output = functional_call(module, params | buffers, (x,))
            output = output + functional_call(module.eval(), params | buffers, (x,))
        value = output.sin().sum()
        grads = torch.autograd.grad(value, leaves, create_graph=True)
        products = torch.autograd.grad(sum(g.sin().sum() for g in grads), leaves)
        results.append({"value": [value.detach()], "grads": [g.detach() for g in grads]})
        results[-1]["products"] = list(products)
    assert_same(*results)


def test_two_sets_of_parameters_keep_their_own():
    x = torch.randn(6, 4, generator=generator(0), dtype=torch.float64)
    results = []
    for blocks in (False, True):
        module = double(MODULES["linear"])
        if blocks:
            remat_blocks(module, r"layers\.\d+$")
        params = split_module(module)[0]
        one = {k: v.clone().requires_grad_() for k, v in params.items()}
        two = {k: (v + 1).requires_grad_() for k, v in params.items()}
        value = (
            functional_call(module, one, (x,)).sum() - 2 * functional_call(module, two, (x,)).sum()
        )
        results.append(torch.autograd.grad(value, [*one.values(), *two.values()]))
    assert all(map(torch.equal, *results))


def test_a_module_trains_with_its_own_parameters():
    x = torch.randn(6, 4, generator=generator(0), dtype=torch.float64)
    grads = []
    for blocks in (False, True):
        module = double(MODULES["batch norm and dropout"])
        if blocks:
            remat_blocks(module, r"layers\.\d+$")
        with replay(3):
            module(x).sum().backward()
        grads.append([p.grad for p in module.parameters()])
    assert all(map(torch.equal, *grads))


def test_hooks_of_a_block_run_once():
    module, calls = remat_blocks(double(MODULES["linear"]), r"layers\.\d+$"), []
    module.layers[0].register_forward_hook(lambda *_: calls.append(1))
    everything(module)
    assert len(calls) == 1


class Reads(nn.Module):
    """A block with something that a recomputation would not know of."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x, **kwargs):
        return self.function(self.layer(x), **kwargs)


PHI = torch.ones(3, dtype=torch.float64, requires_grad=True)
OWN = generator(0)


def collected(y, into):
    into.append(y)
    return y


def stored(y, store):
    store.last = [y]
    return y


class Store:
    last = None


REFUSED = {
    "closure": (lambda y: y * PHI.sum(), dict, r"0' of Stack is .* graph that is not among"),
    "own generator": (
        lambda y: y * torch.rand((), generator=OWN, dtype=y.dtype), dict, "something else when it"
    ),
    "list": (collected, lambda: {"into": []}, "changes a list or dict among its arguments"),
    "object": (stored, lambda: {"store": Store()}, "argument, Store, in place"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_recomputation_would_make_wrong_is_refused(name):
    function, arguments, message = REFUSED[name]
    module = remat_blocks(double(lambda: Stack(Reads(function))), r"layers\.\d+$")
    x = torch.ones(2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"block 'layers.*{message}"):
        module(x, **arguments()).sum().backward()


def test_a_closure_is_refused_where_only_its_own_derivative_is_asked_for():
    module = remat_blocks(double(lambda: Stack(Reads(lambda y: y * PHI.sum()))), r"layers\.\d+$")
    x = torch.ones(2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="is not among its arguments"):
        torch.autograd.grad(module(x).sum(), PHI)
    module.requires_grad_(False)  # nothing to lose: the block is called as it is
    assert torch.autograd.grad(module(x).sum(), PHI)[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("layer.0$", r"layers\.0"),
        (r"layers\.7$", r"layers\.0"),
        ("layers$", r"layers\.0"),
        ("haed", "head"),
        ("blocks", r"layers\.0"),
    ],
)
def test_a_pattern_without_a_match_lists_names_near_it(pattern, names):
    with pytest.raises(ValueError, match=f"no block of Stack .*named .*{names}"):
        remat_blocks(double(MODULES["linear"]), pattern)


@pytest.mark.parametrize("pattern", ["(", None, 3])
def test_a_pattern_that_is_none_is_refused(pattern):
    with pytest.raises(ValueError, match="must be a regular expression"):
        remat_blocks(double(MODULES["linear"]), pattern)


@pytest.mark.slow
def test_a_compiled_block_is_compiled_once():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = remat_blocks(double(MODULES["linear"]), r"layers\.\d+$")
    compiled = torch.compile(module, backend="eager")
    x = torch.ones(2, 4, dtype=torch.float64)
    for _ in range(3):
        compiled(x).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
