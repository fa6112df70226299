"""`functional_call` against torch's own."""

import pytest
import torch
from torch import nn

from metaopt.engine import tree
from metaopt.engine.functional import functional_call


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = self.again = nn.Linear(3, 3)

    def forward(self, x):
        return self.again(torch.tanh(self.first(x)))


class Counting(nn.Module):
    """Assigns to a buffer, and writes into another one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("absent", None)
        self.shift = torch.zeros(3)  # neither a parameter nor a buffer

    def forward(self, x, *, twice=False):
        self.calls = self.calls + 1
        self.total += x.detach().sum()
        return x * self.scale * (2 if twice else 1) + self.calls + self.shift


class Recursive(nn.Module):
    """Calls itself with other weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x, depth=1):
        if depth:
            x = functional_call(self, {"weight": 3 * self.weight}, (x, depth - 1))
        return x * self.weight


class Recurrent(nn.LSTM):
    """Returns the outputs alone."""

    def forward(self, x):
        return super().forward(x)[0]


MODULES = {
    "layers": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "tied": Tied,
    "counting": Counting,
    "recursive": Recursive,
    "recurrent": lambda: Recurrent(3, 2, batch_first=True),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
}


def own(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def other(module):
    """Return other values under a module's names."""
    draw = torch.Generator().manual_seed(1)
    tensors = {k: torch.rand(v.shape, generator=draw) + 0.5 for k, v in own(module).items()}
    return {k: v.requires_grad_(k in dict(module.named_parameters())) for k, v in tensors.items()}


def both(module, tensors, *args, **kwargs):
    """Return outputs, gradients and tensors after a call, by torch and by metaopt."""
    before, results = {k: (v, v.clone()) for k, v in own(module).items()}, []
    for call in (torch.func.functional_call, functional_call):
        passed = {k: v.detach().clone().requires_grad_(v.requires_grad) for k, v in tensors.items()}
        leaves = [v for v in passed.values() if v.requires_grad]
        output = call(module, passed, *args, **kwargs)
        results.append((output, torch.autograd.grad(output.sum(), leaves), passed))
        after = own(module)
        assert all(after[k] is v and torch.equal(v, value) for k, (v, value) in before.items())
    return results


def assert_same(theirs, ours):
    assert torch.equal(ours[0], theirs[0])
    assert all(map(torch.equal, ours[1], theirs[1]))
    assert list(ours[2]) == list(theirs[2])
    assert all(torch.equal(ours[2][k], v) for k, v in theirs[2].items())


@pytest.mark.parametrize("name", MODULES)
def test_equals_torch(name):
    module = MODULES[name]()
    theirs, ours = both(module, other(module), (torch.randn(5, 3),))
    assert_same(theirs, ours)
    with torch.no_grad():
        assert not torch.equal(ours[0], module(torch.ones(5, 3)))


def test_other_arguments_and_missing_names():
    module, x = Counting(), torch.randn(5, 3)
    assert_same(*both(module, other(module), x, {"twice": True}))  # one argument, no tuple
    for _ in range(2):
        functional_call(module, {"scale": torch.ones(3)}, x)
    assert float(module.calls) == 2.0  # the module's own buffer, in which it counts


def test_assigned_buffers_are_in_the_dict():
    module, tensors = Counting(), {"calls": torch.zeros(()), "total": torch.zeros(())}
    for _ in range(3):
        functional_call(module, tensors, torch.ones(3))
    assert (float(tensors["calls"]), float(tensors["total"])) == (3.0, 9.0)
    assert float(module.calls) == float(module.total) == 0.0


@pytest.mark.parametrize("name", ["first.weight", "second.weight"])
def test_a_tied_tensor_has_any_of_its_names(name):
    module = Tied()
    weight = torch.rand(3, 3, requires_grad=True)
    theirs, ours = both(module, {name: weight}, (torch.randn(5, 3),))
    assert_same(theirs, ours)


def test_two_values_of_a_tied_tensor_are_refused():
    module, weight = Tied(), torch.rand(3, 3)
    names = ("first.weight", "second.weight")
    x = torch.randn(5, 3)
    one = functional_call(module, dict.fromkeys(names, weight), x)
    assert torch.equal(one, functional_call(module, {"first.weight": weight}, x))
    with pytest.raises(ValueError, match="multiple values for keys"):
        functional_call(module, dict.fromkeys(names, weight) | {names[1]: 2 * weight}, x)


@pytest.mark.parametrize("name", ["first.weight", "again.weight"])
def test_a_shared_layer_has_any_of_its_names_and_gets_its_tensors_back(name):
    # torch leaves the weights of the call in a layer that it finds under two names.
    module, weight, x = Shared(), torch.rand(3, 3), torch.randn(5, 3)
    before = module.first.weight
    layer = nn.Linear(3, 3)
    layer.weight, layer.bias = nn.Parameter(weight), module.first.bias
    assert torch.equal(functional_call(module, {name: weight}, x), layer(torch.tanh(layer(x))))
    assert module.first.weight is before


@pytest.mark.parametrize("name", ["first.weight", "again.weight"])
def test_a_call_of_a_shared_layer_leaves_the_callers_tensors(name):
    module, weight, x = Shared(), torch.rand(3, 3), torch.randn(5, 3)
    tensors = {name: weight}
    outputs = [functional_call(module, tensors, x) for _ in range(2)]
    assert torch.equal(*outputs)
    assert tensors[name] is weight


@pytest.mark.parametrize("name", ["first.calls", "again.calls"])
def test_a_buffer_of_a_shared_layer_is_counted_on_under_either_name(name):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.again = Counting()

        def forward(self, x):
            return self.again(self.first(x))

    module, tensors = Twice(), {name: torch.zeros(())}
    for calls in (2.0, 4.0):
        functional_call(module, tensors, torch.ones(3))
        assert float(tensors[name]) == calls
    assert float(module.first.calls) == 0.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("names", [("0.weight", "1.weight"), ("1.bias",), ("0.bias",)])
def test_a_script_inside_a_module_gets_its_tensors_back(names):
    module = nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Linear(3, 3)))
    tensors = {k: v for k, v in other(module).items() if k in names}
    assert_same(*both(module, tensors, (torch.randn(5, 3),)))


@pytest.mark.parametrize(
    "tensors", [{"shift": torch.ones(3)}, {"scale": torch.ones(3), "new": torch.ones(3)}]
)
def test_a_tensor_in_another_place_goes_where_torch_puts_it(tensors):
    module, x = Counting(), torch.randn(5, 3)
    theirs = torch.func.functional_call(module, dict(tensors), x)
    module.calls.zero_()
    assert torch.equal(functional_call(module, dict(tensors), x), theirs)
    assert not module.shift.any()
    assert not hasattr(module, "new")


def test_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"is not an instance of torch\.Tensor"):
        functional_call(Counting(), {"scale": 2.0}, torch.ones(3))
    with pytest.raises(RuntimeError, match="DataParallel"):
        functional_call(nn.DataParallel(nn.Linear(3, 1)), {}, torch.ones(3))


def test_the_modules_own_tensors_are_put_back_after_an_exception():
    module = MODULES["layers"]()
    before = own(module)
    with pytest.raises(RuntimeError, match="shapes"):
        functional_call(module, other(module), torch.randn(5, 7))
    assert all(v is before[k] for k, v in own(module).items())


def test_vmap_over_weights():
    module, x = MODULES["tied"](), torch.randn(5, 3)
    stacked = tree.map_tensors(
        lambda t: torch.stack([t, 2 * t]), tree.detach(dict(module.named_parameters()))
    )
    outputs = torch.func.vmap(lambda weights: functional_call(module, weights, x))(stacked)
    for i, output in enumerate(outputs):
        one = functional_call(module, {k: v[i] for k, v in stacked.items()}, x)
        torch.testing.assert_close(output, one)
