"""Rematerialised functions against the functions themselves, in float64."""

import gc
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from metaopt.engine.random import generator, replay
from metaopt.engine.remat import remat
from metaopt.testing.meter import PeakMemory


def pair(x, w):
    return torch.tanh(x @ w).exp() + x, (x * x).sum()


def leaves():
    draw = generator(0)
    return [
        torch.randn(*size, generator=draw, dtype=torch.float64, requires_grad=True)
        for size in ((4, 3), (3, 3))
    ]


def derivatives(f, orders=3):
    """Return a scalar of f, its gradient, and the gradient of a scalar of that, and so on."""
    inputs = leaves()
    first, second = f(*inputs)
    value = (first.sin().sum() * second).tanh() + first.sum()
    result = [value]
    for _ in range(orders):
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        result += grads
        value = sum(g.sin().sum() for g in grads)
    return [t.detach() for t in result]


def same(a, b, tolerance=1e-13):
    return all(
        torch.allclose(x, y, rtol=tolerance, atol=tolerance * float(x.abs().max() + 1e-30))
        for x, y in zip(a, b, strict=True)
    )


def test_derivatives_of_three_orders_are_those_of_the_function():
    assert same(derivatives(pair), derivatives(lambda *x: remat(pair, *x)))


def test_a_rematerialised_function_inside_another():
    def outer(f):
        return lambda x, w: f(lambda x, w: f(pair, x.sin(), w), x, w)

    plain = derivatives(outer(lambda f, *x: f(*x)))
    assert same(plain, derivatives(outer(remat)))


def chain(f, depth):
    def value(x, w):
        for _ in range(depth):
            x = f(lambda x, w: torch.tanh(torch.tanh(torch.tanh(x @ w) @ w) @ w), x, w)
        return x, x.sum()

    return value


@pytest.mark.slow
def test_no_graph_is_larger_than_that_of_one_call():
    peaks = []
    for f in (lambda f, *x: f(*x), remat):
        x = torch.randn(1000, 8, generator=generator(0), requires_grad=True)
        w = torch.eye(8, requires_grad=True)
        with PeakMemory() as meter:
            value = chain(f, 8)(x, w)[1]
            (grad,) = torch.autograd.grad(value, w, create_graph=True)
            torch.autograd.grad(grad.sum(), w)
        peaks.append(meter.peak)
    assert peaks[1] < 0.5 * peaks[0]


def test_the_arguments_alone_are_saved_and_hooks_see_no_more():
    saved = []
    x, w = leaves()
    with saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        output = remat(pair, x, w)[0]
        torch.autograd.grad(output.sum(), w, create_graph=True)
    assert {x.data_ptr(), w.data_ptr()} <= set(saved)
    assert len(saved) <= 6  # x, w twice, for f and for its backward pass; the latter's cotangent


@pytest.mark.parametrize("hooked", [False, True])
def test_a_graph_goes_when_its_output_goes(hooked):
    x, w = leaves()

    def run():
        inside = []

        def f(x, w):
            inside.append(weakref.ref(y := torch.tanh(x @ w)))  # which its own node saves
            return y.exp()

        output = remat(f, x, w)
        (grad,) = torch.autograd.grad(output.sum(), w, create_graph=True)
        torch.autograd.grad(grad.sum(), x)
        return [weakref.ref(output), weakref.ref(grad), *inside]

    gc.disable()
    try:
        if hooked:
            with saved_tensors_hooks(lambda t: t.detach(), lambda t: t):
                ends = run()
        else:
            ends = run()
        assert len(ends) > 2
        assert all(end() is None for end in ends)
    finally:
        gc.enable()


def test_dropout_has_its_masks_again_and_the_caller_its_generator():
    def dropped(x, w):
        return torch.nn.functional.dropout(x @ w, 0.4), x.sum()

    with replay(3):
        plain = derivatives(dropped)
        after = torch.get_rng_state()
    with replay(3):
        assert same(plain, derivatives(lambda *x: remat(dropped, *x)))
        assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("late", [False, True])
def test_autocast_is_as_it_was(late):
    """In float32, with the backward pass inside and outside of the block."""

    def grads(f):
        x = torch.randn(4, 3, generator=generator(0), requires_grad=True)
        w = torch.randn(3, 3, generator=generator(1), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            output = f(lambda x, w: torch.tanh(x @ w), x, w)
            assert output.dtype == torch.bfloat16
            if not late:
                return torch.autograd.grad(output.float().sum(), (x, w))
        with torch.autocast("cpu", torch.float16):
            return torch.autograd.grad(output.float().sum(), (x, w))

    assert all(map(torch.equal, grads(lambda f, *x: f(*x)), grads(remat)))


PHI = torch.ones(2, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("read", [lambda: PHI, lambda: PHI.exp()])
def test_a_tensor_on_the_graph_that_is_no_argument_is_refused(read):
    factor = read()

    def scaled(x):
        return x * factor.sum()

    with pytest.raises(ValueError, match=r"scaled' .* not among its arguments.* shape \(2,\)"):
        remat(scaled, leaves()[0])


def test_a_tensor_on_the_graph_is_its_own_where_no_argument_is():
    x = leaves()[0].detach()
    (grad,) = torch.autograd.grad(remat(lambda x: x * PHI.sum(), x).sum(), PHI)
    assert torch.allclose(grad, x.sum().expand(2))


@pytest.mark.parametrize("number", [0, 1])
def test_an_argument_changed_in_place_is_refused(number):
    x, w = leaves()
    arguments = [x * 1, w.detach()]
    with pytest.raises(ValueError, match="changes an argument in place"):
        remat(lambda *t: (t[number].mul_(2), t[0] + 1)[1], *arguments)


def test_an_argument_changed_before_the_backward_pass_is_an_error():
    x, w = leaves()
    output = remat(pair, x, w)[0]
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output.sum(), x)


def test_a_generator_of_its_own_is_refused():
    own = generator(0)
    x = leaves()[0]
    output = remat(lambda x: x * torch.rand((), generator=own, dtype=x.dtype), x)
    with pytest.raises(ValueError, match="something else when it is computed again"):
        torch.autograd.grad(output.sum(), x)


def test_a_tensor_that_leaves_otherwise_than_returned_has_no_derivative():
    kept = []

    def leaking(x):
        kept.append(x.sin())
        return x.cos()

    x = leaves()[0]
    output = remat(leaking, x)
    with pytest.raises(ValueError, match="read without being returned"):
        torch.autograd.grad((output * kept[0]).sum(), x)


def test_outputs_are_what_the_function_returns():
    x, w = leaves()
    passed, both, other = remat(lambda x, w: (x, {"sum": x + w[0], "n": None}, (3, x.T)), x, w)
    assert passed is x
    assert both["n"] is None
    assert other[0] == 3
    assert torch.equal(both["sum"], x + w[0])
    other[1].mul_(2)  # in its own memory, so that x stays
    assert torch.equal(x, leaves()[0])


def test_an_output_may_be_changed_in_place():
    x, w = leaves()
    y = remat(lambda x, w: x @ w, x, w)
    grads = torch.autograd.grad(y.mul_(2).tanh_().sum(), (x, w))
    z = x @ w
    assert same(grads, torch.autograd.grad(z.mul_(2).tanh_().sum(), (x, w)))


def test_an_argument_without_a_path_has_no_derivative():
    x, w = leaves()
    output = remat(lambda x, w: x.sin(), x, w)
    assert torch.autograd.grad(output.sum(), (x, w), allow_unused=True)[1] is None


def test_forward_mode_and_transforms_call_the_function_itself():
    x = leaves()[0].detach()

    def value(x):
        return remat(lambda x: x.sin().sum(), x)

    assert torch.allclose(torch.func.jvp(value, (x,), (x,))[1], (x.cos() * x).sum())
    assert torch.allclose(torch.func.vmap(value)(x), x.sin().sum(1))
    hessian = torch.func.hessian(value)(x).reshape(12, 12)
    assert torch.allclose(hessian, torch.diag(-x.sin().flatten()))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        weight = torch.ones((), dtype=x.dtype, requires_grad=True)
        result = remat(lambda x, a: (a * x).sin().sum(), dual, weight)
        assert torch.allclose(
            torch.autograd.forward_ad.unpack_dual(result).tangent, (x.cos() * x).sum()
        )
    with torch.no_grad():
        assert not remat(pair, *leaves())[0].requires_grad


def test_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="remat takes tensors after the function; got int"):
        remat(pair, leaves()[0], 3)
