"""Modules of kinds that users bring, a problem that trains one, and oracles without estimators."""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD


class Regression(GradientProblem):
    """Learn the weight of every third sequence, (6, 5, 4) -> (6,); F is the unweighted loss."""

    def __init__(self, module, dtype=torch.float64):
        self.inner_optimizer = SGD(lr=0.3)
        self.module = module.to(dtype)
        self.params, self.buffers, self.frozen = split_module(self.module)
        draw = torch.Generator().manual_seed(0)
        self.data = [
            (
                torch.randn(6, 5, 4, generator=draw, dtype=torch.float64).to(dtype),
                torch.randn(6, generator=draw, dtype=torch.float64).to(dtype),
            )
            for _ in range(2)
        ]

    def init_outer(self, generator):
        return {"weights": torch.linspace(-1, 1, 3, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return self.params

    def init_buffers(self, outer, params):
        return self.buffers

    def inner_batch(self, draw):
        return self.data[0]

    def outer_batch(self, draw):
        return self.data[1]

    def losses(self, inner, batch):
        x, y = batch
        return (functional_call(self.module, inner, (x,)).flatten(1).mean(1) - y) ** 2

    def inner_loss(self, outer, inner, batch):
        weights = outer["weights"].sigmoid().flatten()
        return (weights.repeat(6 // len(weights)) * self.losses(inner, batch)).mean()

    def outer_loss(self, outer, inner, batch):
        return self.losses(inner, batch).mean()


def relative_error(estimate, truth):
    return float((estimate - truth).norm() / truth.norm())


def differences(value, outer, step=1e-5):
    """Return central differences of a function of the outer weights, (3,)."""
    return torch.stack(
        [
            (value(outer + step * unit) - value(outer - step * unit)) / (2 * step)
            for unit in torch.eye(len(outer), dtype=outer.dtype)
        ]
    )


def whole_run(problem, steps):
    """Return the derivative of F after `steps` inner steps: no derivative but those of training."""

    def value(weights):
        loop, outer = InnerLoop(problem), {"weights": weights}
        inner = loop.run(outer, loop.start(outer, None, 3), 3, steps)
        return loop.evaluate(outer, inner, 3).value

    return differences(value, problem.init_outer(None)["weights"])


def second_order(problem, steps):
    """Return dF/dphi - J^T v after `steps` inner steps, by differences of dg/dtheta in phi."""
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    inner = loop.run(outer, loop.start(outer, None, 3), 3, steps)
    theta = tree.leaves(inner.params)
    loss = loop.outer_value(outer, inner._replace(params=theta), loop.outer_draw(inner, 3))
    v = tree.gradient(loss, theta)[0]

    def slope_along_v(weights):
        leaves = tree.leaves(inner.params)
        loss = loop.inner_value(
            {"weights": weights}, inner.at(leaves), loop.solve_draw(inner, 3, steps)
        )
        return tree.dot(tree.gradient(loss, leaves)[0], v)

    return -differences(slope_along_v, outer["weights"])


def seeded(make):
    """Return a constructor of a module whose weights do not depend on what ran before."""

    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return make()

    return build


class Layer(nn.Module):
    """A function of a linear layer's output, and of that layer."""

    def __init__(self, function, **parts):
        super().__init__()
        self.layer, self.head, self.function = nn.Linear(4, 4), nn.Linear(4, 1), function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self.function(self, x))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.core, self.head = kind(4, 3, batch_first=True, **options), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.core(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.core, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.core(x, x, x, need_weights=False)[0])


class SineOnce(torch.autograd.Function):
    """sin, with a first derivative only, which torch does not know of."""

    @staticmethod
    def forward(ctx, x):
        ctx.cosine = x.detach().cos()
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.cosine


class SineMarked(SineOnce):
    """The same, which says so."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.cosine


class SineTwice(torch.autograd.Function):
    """sin, with derivatives of every order in reverse mode and none in forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


def attend(module, x):
    return F.scaled_dot_product_attention(module.layer(x), x, x)


def in_place(module, x):
    y = module.layer(x)
    y.mul_(2).tanh_()
    shifted = torch.zeros_like(y)
    shifted[:, 1:] = y[:, 1:]
    return shifted


def hooked():
    module = Layer(lambda m, x: m.layer(x).tanh())
    module.layer.register_forward_hook(lambda part, inputs, output: output * 1.5)
    return module


def tied():
    module = Layer(lambda m, x: m.other(m.layer(x).tanh()).tanh(), other=nn.Linear(4, 4))
    module.other.weight = module.layer.weight
    return module


def encoder(**options):
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, **options)
    return nn.Sequential(layer, nn.Linear(4, 1))


def plain():
    return Layer(lambda m, x: m.layer(x).tanh())


def embedded(**options):
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(7, 3, **options), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.table((2 * x).long() % 7).mean((1, 2)).tanh())

    return Embedded()


class Renormalized(nn.Module):
    def forward(self, weight):
        return weight.renorm(2, 0, 0.5)


def renormalized():
    module = embedded()
    nn.utils.parametrize.register_parametrization(module.table, "weight", Renormalized())
    return module


def bag(**options):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.EmbeddingBag(7, 3, **options), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.table((2 * x).long().flatten(1) % 7).tanh())

    return Bag()


RIGHT = {
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm with dropout": lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.3),
    "compiled": lambda: torch.compile(plain(), backend="eager"),
    "compiled ahead of time": lambda: torch.compile(plain(), backend="aot_eager"),
    "fused attention": lambda: Layer(attend),
    "multi-head attention": Attention,
    "transformer layer": encoder,
    "transformer layer in evaluation mode": lambda: encoder().eval(),
    "tied": tied,
    "unused": lambda: Layer(lambda m, x: m.layer(x).tanh(), spare=nn.Linear(2, 2)),
    "in place": lambda: Layer(in_place),
    "hooked": hooked,
    "padded embedding": lambda: embedded(padding_idx=0),
    "norm of an embedding by parametrize": renormalized,
    "orthogonal": lambda: nn.Sequential(
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 1)
    ),
}
KINDS = {name: seeded(make) for name, make in RIGHT.items()}


class OwnGenerator(nn.Module):
    """Dropout whose masks come from a generator that nobody seeds."""

    def __init__(self):
        super().__init__()
        self.layer, self.generator = nn.Linear(4, 1), torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.layer(x * torch.rand(x.shape, generator=self.generator, dtype=x.dtype))


class HiddenAverage(nn.Module):
    """A layer that adds the output of an average of its weights, which is no buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.average = nn.Linear(4, 1), None

    def forward(self, x):
        with torch.no_grad():
            weight = self.layer.weight
            self.average = (
                weight.clone() if self.average is None else self.average.lerp(weight, 0.1)
            )
        return self.layer(x) + F.linear(x, self.average)


class Normalized(nn.Module):
    """A layer that writes a weight before it reads it, seen by torch's version counter or not."""

    def __init__(self, write):
        super().__init__()
        self.layer, self.write = nn.Linear(4, 1), write

    def forward(self, x):
        self.write(self.layer.weight)
        return self.layer(x)


def checkpointed(use_reentrant):
    def recomputed(module, x):
        y = checkpoint(module.body, module.layer(x), use_reentrant=use_reentrant)
        return y.tanh()

    return lambda: Layer(recomputed, body=nn.Linear(4, 4))


def weighted(normalize):
    return lambda: nn.Sequential(normalize(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 1))


def checkpointed_function():
    return Layer(lambda m, x: checkpoint(lambda h: m.layer(h).tanh(), x, use_reentrant=False))


def sine(function):
    return lambda: Layer(lambda m, x: function.apply(m.layer(x)))


SECOND, FORWARD = ("unroll", "segments", "forward", "implicit_identity"), ("one_step",)
FIRST = ("finite_difference", "sama")
GRADIENT, ALL = (*SECOND, *FORWARD, *FIRST), (*SECOND, *FORWARD, *FIRST, "score")

# What is refused by whom, with which words.
REFUSED = {
    "checkpointed": (checkpointed(False), dict.fromkeys(ALL, "checkpoint")),
    "checkpointed, reentrant": (checkpointed(True), dict.fromkeys(ALL, "use_reentrant=True")),
    "checkpointed function": (checkpointed_function, dict.fromkeys(ALL, "checkpoint")),
    "generator of its own": (OwnGenerator, dict.fromkeys(ALL, "a generator of its own")),
    "hidden average": (HiddenAverage, dict.fromkeys(ALL, "a hidden state")),
    "sparse embedding": (lambda: embedded(sparse=True), dict.fromkeys(ALL, "sparse=False")),
    "embedding scaled by frequency": (
        lambda: embedded(scale_grad_by_freq=True), dict.fromkeys(ALL, "scale_grad_by_freq=False")
    ),
    "bag scaled by frequency": (
        lambda: bag(scale_grad_by_freq=True, mode="sum"),
        dict.fromkeys(ALL, "scale_grad_by_freq=False"),
    ),
    # No row has that norm at first.
    "embedding with max_norm": (
        lambda: embedded(max_norm=9.0), dict.fromkeys(ALL, "changes the parameter 'table.weight'")
    ),
    "bag with max_norm": (
        lambda: bag(max_norm=9.0), dict.fromkeys(ALL, "changes the parameter 'table.weight'")
    ),
    "weight written in place": (
        lambda: Normalized(torch.no_grad()(lambda w: w.clamp_(-0.3, 0.3))),
        dict.fromkeys(ALL, "changes the parameter 'layer.weight' in place.*register_param"),
    ),
    "weight written by .data": (
        lambda: Normalized(lambda w: w.data[0].div_(2)),
        dict.fromkeys(ALL, "changes the parameter 'layer.weight' in place"),
    ),
    "weight written on the graph": (
        lambda: Normalized(lambda w: w.div_(2)),
        dict.fromkeys(ALL, "changes theta or phi in place"),
    ),
    "spectral_norm": (
        weighted(nn.utils.parametrizations.spectral_norm),
        dict.fromkeys(GRADIENT, r"module\.eval\(\)"),
    ),
    "old spectral_norm": (
        weighted(nn.utils.spectral_norm), dict.fromkeys(GRADIENT, r"module\.eval\(\)")
    ),
    "weight_norm": (
        weighted(nn.utils.parametrizations.weight_norm),
        dict.fromkeys(SECOND, "second derivative of weight_norm") | {"one_step": "forward mode"},
    ),
    "function without a second derivative": (
        sine(SineOnce), dict.fromkeys(SECOND, "not differentiable") | {"one_step": "forward mode"}
    ),
    "function marked once_differentiable": (
        sine(SineMarked), dict.fromkeys(SECOND, "derivative|twice") | {"one_step": "forward mode"}
    ),
    "function without forward mode": (sine(SineTwice), {"one_step": "forward mode"}),
}  # fmt: skip
