"""Small problems with an odd module, loss, state or optimizer each, by name."""

import math

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW
from metaopt.engine.remat_blocks import remat_blocks
from metaopt.engine.schedules import Cosine

ROWS = 6


class Odd(GradientProblem):
    """Weights of rows for a module on sequences, (6, 4, 3) -> (6,); F is the unweighted loss."""

    def __init__(self):
        self.inner_optimizer = SGD(lr=0.2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = self.build().double()
            self.x, self.x_held_out = torch.randn(2, ROWS, 4, 3, dtype=torch.float64)
            self.y, self.y_held_out = torch.randn(2, ROWS, dtype=torch.float64)
        self.params, self.statistics, self.frozen = split_module(self.module)
        self.setup()

    def build(self):
        return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))

    def setup(self):
        """Change what is particular to a problem."""

    def init_outer(self, generator):
        return {"weights": torch.linspace(-1, 1, 3, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return self.params

    def init_buffers(self, outer, params):
        return self.statistics

    def inner_batch(self, draw):
        return self.x, self.y

    def outer_batch(self, draw):
        return self.x_held_out, self.y_held_out

    def losses(self, inner, batch):
        x, y = batch
        out = functional_call(self.module, inner, (x,))
        out = out[0] if isinstance(out, tuple) else out
        return (out.flatten(1).mean(1) - y) ** 2

    def inner_loss(self, outer, inner, batch):
        self.module.train()
        return (outer["weights"].sigmoid().repeat(2) * self.losses(inner, batch)).mean()

    def outer_loss(self, outer, inner, batch):
        self.module.eval()
        return self.losses(inner, batch).mean()


class Recurrent(Odd):
    def build(self):
        return nn.GRU(3, 3, batch_first=True, bidirectional=True)


class Attention(Odd):
    def build(self):
        return nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True, norm_first=True)

    def setup(self):
        self.x, self.x_held_out = (F.pad(x, (0, 1), value=0.5) for x in (self.x, self.x_held_out))


class Convolution(Odd):
    def build(self):
        layers = nn.Conv1d(4, 4, 2), nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool1d(2)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 1))


class CumulativeNorm(Odd):
    """Running statistics that are the average over all steps, by a counter in the module."""

    def build(self):
        norm = nn.BatchNorm1d(4, momentum=None)
        return nn.Sequential(nn.Conv1d(4, 4, 1), norm, nn.Tanh(), nn.Conv1d(4, 1, 3))


class TrackedInstances(Odd):
    def build(self):
        norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True, momentum=0.3)
        return nn.Sequential(nn.Conv1d(4, 4, 1), norm, nn.Tanh(), nn.Conv1d(4, 1, 3))


class OwnStatistics(Odd):
    """A module that assigns what it computes to a buffer, on the graph."""

    def build(self):
        class Centred(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(3, 3)
                self.register_buffer("centre", torch.zeros(3))

            def forward(self, x):
                h = self.layer(x)
                if self.training:
                    self.centre = 0.5 * self.centre + 0.5 * h.mean((0, 1))
                return (h - self.centre).tanh()

        return nn.Sequential(Centred(), nn.Linear(3, 1))


class Contrastive(Odd):
    def losses(self, inner, batch):
        x, y = batch
        h = F.normalize(functional_call(self.module[0], self.first(inner), (x.mean(1),)), dim=1)
        return F.cross_entropy(h @ h.T / 0.5 - 9 * torch.eye(ROWS), y.argsort(), reduction="none")

    def first(self, inner):
        return {"weight": inner["0.weight"], "bias": inner["0.bias"]}


class MarginalLikelihood(Odd):
    """A Gaussian process: Cholesky factors and determinants of what theta makes."""

    def losses(self, inner, batch):
        x, y = batch
        h = functional_call(self.module[0], {k[2:]: inner[k] for k in ("0.weight", "0.bias")}, (x,))
        kernel = h.flatten(1) @ h.flatten(1).T + torch.eye(ROWS).double()
        factor = torch.linalg.cholesky(kernel)
        fit = torch.cholesky_solve(y[:, None], factor)[:, 0] * y
        return fit + 2 * factor.diagonal().log()


class Averages(Odd):
    """F reads a nested state: averages of theta at two rates, one by the number of the step."""

    def init_state(self, outer, params):
        return {"fast": dict(params), "rest": [dict(params), torch.zeros((), dtype=torch.int64)]}

    def update_state(self, outer, inner, step):
        fast, (slow, count) = inner.state["fast"], inner.state["rest"]
        decay = outer["weights"][0].sigmoid()
        return {
            "fast": {k: decay * v + (1 - decay) * inner.params[k] for k, v in fast.items()},
            "rest": [{k: v.lerp(inner.params[k], 1 / step) for k, v in slow.items()}, count + 1],
        }

    def outer_loss(self, outer, inner, batch):
        fast, (slow, count) = inner.state["fast"], inner.state["rest"]
        mean = {k: (fast[k] + slow[k] * count) / (1 + count) for k in fast}
        return self.losses({**inner, **mean}, batch).mean()


class Memory(Averages):
    """g reads what the module said of its examples in earlier steps."""

    def init_state(self, outer, params):
        return {"outputs": torch.zeros(ROWS, dtype=torch.float64)}

    def update_state(self, outer, inner, step):
        outputs = functional_call(self.module, dict(inner), (self.x,)).flatten(1).mean(1)
        return {"outputs": inner.state["outputs"].index_copy(0, torch.arange(3), outputs[:3])}

    def inner_loss(self, outer, inner, batch):
        target = 0.5 * batch[1] + 0.5 * inner.state["outputs"]
        return Odd.inner_loss(self, outer, inner, (batch[0], target))

    outer_loss = Odd.outer_loss


class LearnedAdam(Odd):
    """phi is rate by parameter, betas, eps and decay of Adam, with a schedule and clipping."""

    def init_outer(self, generator):
        rates = {f"rate {k}": torch.full((1,), -2.0, dtype=torch.float64) for k in self.params}
        numbers = {"beta": 1.5, "eps": -3.0, "decay": -2.0, "clip": -0.5}
        return rates | {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}

    def inner_optimizer(self, outer, step):
        return Adam(
            lr={k: outer[f"rate {k}"].exp() for k in self.params},
            betas=(outer["beta"].sigmoid(), 0.99), eps=outer["eps"].exp(),
            weight_decay=outer["decay"].exp(), clip_norm=outer["clip"].exp(),
            schedule=Cosine(total=8, floor=0.1),
        )  # fmt: skip

    def setup(self):
        del self.inner_optimizer

    def inner_loss(self, outer, inner, batch):
        return self.losses(inner, batch).mean()


class Groups(Odd):
    def setup(self):
        groups = [{"match": "bias", "lr": 0.02}, {"match": r"^2\.", "weight_decay": 0.3}]
        self.inner_optimizer = AdamW(lr=0.05, weight_decay=0.1, groups=groups, clip_norm=0.4)


class Dropout(Odd):
    """Masks, and noise in the batch, of each step."""

    def build(self):
        return nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.4), nn.Tanh(), nn.Linear(5, 1))

    def inner_batch(self, draw):
        noise = torch.randn(self.x.shape, generator=draw.generator, dtype=torch.float64)
        return self.x + 0.1 * noise, self.y


class Rematerialised(Dropout):
    """The same in blocks that are computed again, one with running statistics."""

    def build(self):
        block = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Tanh())
        return remat_blocks(nn.Sequential(block, nn.Linear(3, 1)), "0")


class Fork(Odd):
    """MAML: theta_0 is phi, with a rate that is learned as well and a frozen layer."""

    warm_start = False

    def setup(self):
        del self.inner_optimizer

    def inner_optimizer(self, outer, step):
        return SGD(lr=outer["rate"].exp(), momentum=0.5, nesterov=True)

    def build(self):
        module = super().build()
        module[0].bias.requires_grad_(False)
        return module

    def init_outer(self, generator):
        rate = torch.tensor(math.log(0.2), dtype=torch.float64)
        return {**{k: v.clone() for k, v in self.params.items()}, "rate": rate}

    def init_params(self, outer, generator):
        return {k: outer[k] * 1.0 for k in self.params}

    def inner_loss(self, outer, inner, batch):
        noise = 0.1 * sum(v.square().sum() for v in inner.params.values())
        return self.losses(inner, batch).mean() + noise


class Augmented(Odd):
    """phi moves inputs of g, transposed, and F holds it, too."""

    def init_outer(self, generator):
        return {"shift": torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2).T[None]}

    def inner_loss(self, outer, inner, batch):
        moved = self.x + outer["shift"].repeat(1, 2, 1)
        return self.losses(inner, (moved, batch[1])).mean()

    def outer_loss(self, outer, inner, batch):
        return super().outer_loss(outer, inner, batch) * (1 + outer["shift"].square().mean())


class Tied(Odd):
    """A table that is the last layer as well, and a weight on a manifold."""

    def build(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(5, 3)
                self.first = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
                self.second = nn.Linear(3, 3)
                self.last = nn.Linear(3, 5, bias=False)
                self.last.weight = self.table.weight

            def forward(self, x):
                tokens = (x[..., 0] > 0).long() + (x[..., 1] > 0).long()
                h = self.second(self.first(self.table(tokens)).tanh()) + x
                return self.last(h).logsumexp(-1)

        return Net()


PROBLEMS = {kind.__name__: kind for kind in (
    Odd, Recurrent, Attention, Convolution, CumulativeNorm, TrackedInstances, OwnStatistics,
    Contrastive, MarginalLikelihood, Averages, Memory, LearnedAdam, Groups, Dropout,
    Rematerialised, Fork, Augmented, Tied,
)}  # fmt: skip
