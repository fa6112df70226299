"""Whether hypergradients are worth anything: smoothness of a network, bfloat16 of a transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW
from metaopt.engine.random import generator
from metaopt.estimators import Unroll
from metaopt.optimizers import Descent
from metaopt.testing import check_precision, check_smoothness, in_float64, run_differences

STEPS = 50
SMOOTHNESS = ((SGD(lr=0.1), 0.1), (AdamW(lr=0.1), 0.1), (AdamW(lr=0.1), 0.3))
PRECISION = (SGD(lr=0.3), SGD(lr=2.0), AdamW(lr=0.01), AdamW(lr=0.01, eps=1e-4))


class Weighted(GradientProblem):
    """One weight per training example; a tanh network is trained from scratch."""

    warm_start = False

    def __init__(self, inner_optimizer, examples=64, width=16):
        self.inner_optimizer, self.examples = inner_optimizer, examples
        draw = generator(0)
        self.x = torch.randn(2 * examples, 8, generator=draw)
        labels = (torch.sin(self.x @ torch.randn(8, generator=draw)) > 0).long()
        flipped = torch.rand(2 * examples, generator=draw) < 0.3
        flipped[examples:] = False
        self.y = torch.where(flipped, 1 - labels, labels)
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )

    def init_outer(self, generator):
        return {"weight": torch.zeros(self.examples)}

    def init_params(self, outer, generator):
        return split_module(self.model)[0]

    def inner_batch(self, draw):
        return self.x[: self.examples], self.y[: self.examples]

    def outer_batch(self, draw):
        return self.x[self.examples :], self.y[self.examples :]

    def losses(self, inner, batch):
        logits = functional_call(self.model, inner, batch[0])
        return F.cross_entropy(logits, batch[1], reduction="none")

    def inner_loss(self, outer, inner, batch):
        return (outer["weight"].sigmoid() * self.losses(inner, batch)).mean()

    def outer_loss(self, outer, inner, batch):
        return self.losses(inner, batch).mean()


class Block(nn.Module):
    """Causal self-attention with two heads and a feed-forward network, normalised before."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        heads = self.attention(self.first(x)).view(batch, length, 3, 2, width // 2)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2) / (width // 2) ** 0.5).masked_fill(mask, -1e4)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = x + self.output(mixed)
        return x + self.down(F.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Two blocks of width 32 on sequences of twelve of sixteen tokens."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(16, 32), nn.Parameter(torch.randn(12, 32) / 50)
        self.blocks = nn.Sequential(Block(32), Block(32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 16)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions)))


class Sequences(Weighted):
    """One weight per noisy sequence that counts in steps of 1, 2 or 3; bfloat16 by autocast."""

    compute_dtype = torch.bfloat16

    def __init__(self, inner_optimizer, examples=16):
        self.inner_optimizer, self.examples = inner_optimizer, examples
        draw = generator(0)
        start = torch.randint(16, (2 * examples, 1), generator=draw)
        stride = torch.randint(1, 4, (2 * examples, 1), generator=draw)
        counted = (start + stride * torch.arange(13)) % 16
        noise = torch.rand(counted.shape, generator=draw) < 0.2
        tokens = torch.where(noise, torch.randint(16, counted.shape, generator=draw), counted)
        self.x, self.y = tokens[:, :-1], tokens[:, 1:]
        torch.manual_seed(0)
        self.model = Transformer()

    def losses(self, inner, batch):
        with torch.autocast("cpu", torch.bfloat16):
            logits = functional_call(self.model, inner, batch[0])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), reduction="none")
        return losses.view(batch[1].shape).mean(1)


def gradient_error(problem):
    """Return how far the unrolled hypergradient is from differences of the whole run."""
    loop = InnerLoop(in_float64(problem))
    outer = loop.problem.init_outer(generator(0))
    start = loop.start(outer, None, 0)
    _, feedback = Unroll(STEPS)(loop, outer, tree.clone(start), 0)
    return run_differences(loop, outer, start, 0, STEPS, directions=1).distance(feedback.grad)


def called(optimizer):
    eps = f", eps {optimizer.eps:g}" if isinstance(optimizer, Adam) else ""
    return f"{type(optimizer).__name__}, lr {optimizer.lr:g}{eps}"


def main():
    torch.set_num_threads(1)
    print(f"K = {STEPS}: outer_lr of Adam, error of the gradient, S at u and u / 100, change of F: "
          "actual / predicted, correlation, growth of the adjoint, verdict")  # fmt: skip
    for optimizer, outer_lr in SMOOTHNESS:
        problem = Weighted(optimizer)
        it = check_smoothness(problem, Unroll(STEPS), Descent("adam", lr=outer_lr))
        print(f"  {called(optimizer):<28}{outer_lr:4} {gradient_error(problem):8.0e} "
              f"{it.at_step:7.3f} {it.at_fraction:6.3f} {it.actual / it.predicted:6.2f} "
              f"{it.correlation:6.2f} {it.adjoint_growth:6.3g}  {it.verdict.level}")  # fmt: skip
    print("cosine of bfloat16 with float64 at K, and the ratio of norms")
    for optimizer in PRECISION:
        precision = check_precision(Sequences(optimizer), Unroll)
        rows = (f"{r.inner_steps}: {r.cosine:.3f} ({r.norm_ratio:.2g})" for r in precision.rows)
        print(f"  {called(optimizer):<28}{'  '.join(rows)}  {precision.verdict.level}")


if __name__ == "__main__":
    main()
