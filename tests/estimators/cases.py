"""Small problems with the complications of real ones, shared by the estimators' tests."""

import torch
from torch.func import functional_call
from torch.nn import functional as F

from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_optimizers import SGD


class Classification(GradientProblem):
    """Learn a weight for each row of a training set with wrong labels.

    g = mean_i w_i(phi) l_i(theta) on the training rows, F = mean_i l_i(theta) on clean ones.

    `pattern` says how a row's weight comes about:
    - "rows": sigmoid(phi_i), one number per row; phi reaches g only;
    - "net": sigmoid(net_phi(l_i.detach())), the Meta-Weight-Net;
    - "no_grad": the same, with the loss computed a second time under `torch.no_grad()`;
    - "direct": weight 1; phi reaches F only.
    """

    def __init__(
        self, hidden=16, features=8, classes=3, rows=32, dropout=0.0, batch_norm=False,
        frozen=False, tied=False, unused=False, pattern="rows", dtype=torch.float64,
        inner_optimizer=None, seed=0,
    ):  # fmt: skip
        self.inner_optimizer = inner_optimizer or SGD(lr=0.1)
        self.pattern, self.dtype = pattern, dtype
        draw = torch.Generator().manual_seed(seed)
        self.module = build(features, hidden, classes, dropout, batch_norm, tied, draw).to(dtype)
        if frozen:
            self.module.first.weight.requires_grad_(False)
        if unused:
            self.module.spare = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        centres = torch.randn(classes, features, generator=draw, dtype=dtype)
        self.data = [rows_of(centres, rows, draw) for _ in range(2)]
        self.data[0][1][: rows // 4] = (self.data[0][1][: rows // 4] + 1) % classes
        self.rows = rows
        self.net = torch.nn.Sequential(
            torch.nn.Linear(1, 10), torch.nn.Tanh(), torch.nn.Linear(10, 1)
        )
        seed_module(self.net, draw).to(dtype)

    def init_outer(self, generator):
        if self.pattern in ("net", "no_grad"):
            return {k: v.detach().clone() for k, v in self.net.named_parameters()}
        size = 1 if self.pattern == "direct" else self.rows
        return {"weights": torch.linspace(-1, 1, size, dtype=self.dtype)}

    @property
    def frozen(self):
        return split_module(self.module)[2]

    def init_params(self, outer, generator):
        return split_module(self.module)[0]

    def init_buffers(self, outer, params):
        return split_module(self.module)[1]

    def inner_batch(self, draw):
        return (*self.data[0], torch.arange(self.rows))

    def outer_batch(self, draw):
        return self.data[1]

    def inner_loss(self, outer, inner, batch):
        x, y, index = batch
        losses = self.losses(inner, x, y)
        if self.pattern == "direct":
            return losses.mean()
        if self.pattern == "net":
            inputs = losses.detach()
        elif self.pattern == "no_grad":
            with torch.no_grad():
                inputs = self.losses(inner, x, y)
        else:
            return (torch.sigmoid(outer["weights"][index]) * losses).mean()
        weights = torch.sigmoid(functional_call(self.net, outer, (inputs[:, None],)))
        return (weights[:, 0] * losses).mean()

    def outer_loss(self, outer, inner, batch):
        loss = self.losses(inner, *batch).mean()
        if self.pattern == "direct":
            return loss * torch.exp(outer["weights"]).sum()
        return loss

    def losses(self, inner, x, y):
        return F.cross_entropy(functional_call(self.module, inner, (x,)), y, reduction="none")


def build(features, hidden, classes, dropout, batch_norm, tied, draw):
    layers = {
        "first": torch.nn.Linear(features, hidden),
        "norm": torch.nn.BatchNorm1d(hidden) if batch_norm else torch.nn.Identity(),
        "tanh": torch.nn.Tanh(),
        "second": torch.nn.Linear(hidden, hidden),
        "relu": torch.nn.ReLU(),
        "dropout": torch.nn.Dropout(dropout),
    }
    if tied:
        layers["third"] = torch.nn.Linear(hidden, hidden)
        layers["third"].weight = layers["second"].weight
    module = torch.nn.Sequential()
    for name, layer in (layers | {"last": torch.nn.Linear(hidden, classes)}).items():
        module.add_module(name, layer)
    return seed_module(module, draw)


@torch.no_grad()
def seed_module(module, draw):
    """Fill every weight from `draw`, so that a problem is a function of its seed."""
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * scale)
    return module


def rows_of(centres, rows, draw):
    labels = torch.randint(len(centres), (rows,), generator=draw)
    noise = torch.randn(rows, centres.shape[1], generator=draw, dtype=centres.dtype)
    return centres[labels] + noise, labels


def relative_error(estimate, exact):
    gap = sum(((estimate[k] - exact[k]) ** 2).sum() for k in exact)
    return float((gap / sum((v**2).sum() for v in exact.values())).sqrt())


def cosine(estimate, exact):
    a = torch.cat([estimate[k].flatten() for k in exact])
    b = torch.cat([exact[k].flatten() for k in exact])
    return float(torch.cosine_similarity(a, b, dim=0))


class ForkedAverage:
    """Part of a problem: `module` trained from phi, with an average of theta in its state."""

    def init_params(self, outer, generator):
        return {k: v.clone() for k, v in outer.items()}

    def init_buffers(self, outer, params):
        return dict(self.module.named_buffers())

    def init_state(self, outer, params):
        return {"average": dict(params)}

    def update_state(self, outer, inner, step):
        average = inner.state["average"]
        return {"average": {k: 0.5 * average[k] + 0.5 * inner.params[k] for k in average}}
