"""Memory and time of an unroll through a transformer, its blocks rematerialised or not.

Eight blocks of width 128 on 8 rows of 128 tokens, K = 2 steps of SGD. live: peak of the storage of
tensors made by the call; G: CPU time in plain gradients of g, two of which are the inner steps.
checkpoint: `torch.utils.checkpoint` of each block, given its parameters as arguments, which alone
makes its second derivatives right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.mlp import least_seconds
from metaopt.engine import tree
from metaopt.engine.functional import functional_call
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, generator
from metaopt.engine.remat_blocks import remat_blocks
from metaopt.estimators import Unroll
from metaopt.testing.meter import PeakMemory

WIDTH, HEADS, DEPTH, ROWS, TOKENS, WORDS = 128, 4, 8, 8, 128, 64


class Block(nn.Module):
    """Causal attention and a network of one hidden layer, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norms[0](x)).view(*x.shape[:2], 3, HEADS, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        result: Tensor = x + self.mlp(self.norms[1](x))
        return result


class Checkpointed(nn.Module):
    """A block under torch's checkpoint."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        names, values = zip(*self.block.named_parameters(), strict=True)

        def run(x: Tensor, *values: Tensor) -> Tensor:
            result: Tensor = functional_call(
                self.block, dict(zip(names, values, strict=True)), (x,)
            )
            return result

        result: Tensor = checkpoint(run, x, *values, use_reentrant=False)
        return result


class Language(GradientProblem):
    """A weight for each row of random tokens, whose next ones a transformer predicts."""

    def __init__(self, how: str = "plain", depth: int = DEPTH) -> None:
        self.inner_optimizer = SGD(lr=0.1)
        draw = generator(0)
        self.texts = torch.randint(WORDS, (2, 64, TOKENS + 1), generator=draw)
        torch.manual_seed(0)
        blocks: list[nn.Module] = [Block() for _ in range(depth)]
        if how == "checkpoint":
            blocks = [Checkpointed(block) for block in blocks]
        self.module = nn.Sequential(
            nn.Embedding(WORDS, WIDTH), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)
        )
        if how == "remat":
            remat_blocks(self.module, r"^[1-8]$")

    def init_outer(self, generator: Generator) -> Tree:
        return {"weight": torch.zeros(64)}

    def init_params(self, outer: Tree, generator: Generator) -> Tree:
        return split_module(self.module)[0]

    def inner_batch(self, draw: Draw) -> Tensor:
        return torch.randint(64, (ROWS,), generator=draw.generator)

    outer_batch = inner_batch

    def losses(self, inner: Tree, texts: Tensor) -> Tensor:
        logits = functional_call(self.module, inner, (texts[:, :-1],))
        return F.cross_entropy(logits.transpose(1, 2), texts[:, 1:], reduction="none").mean(1)

    def inner_loss(self, outer: Tree, inner: Tree, batch: Tensor) -> Tensor:
        losses = self.losses(inner, self.texts[0, batch])
        return (outer["weight"][batch].sigmoid() * losses).mean()

    def outer_loss(self, outer: Tree, inner: Tree, batch: Tensor) -> Tensor:
        return self.losses(inner, self.texts[1, batch]).mean()


def hypergradient(problem: Language, segments: int) -> Tensor:
    loop, phi = InnerLoop(problem), problem.init_outer(generator(0))
    start = loop.start(phi, None, 0)
    grad = Unroll(2, segments=segments)(loop, phi, start, 0)[1].grad
    assert grad is not None
    return grad["weight"]


def gradient(problem: Language) -> None:
    loop, phi = InnerLoop(problem), problem.init_outer(generator(0))
    start = loop.start(phi, None, 0)
    theta = tree.leaves(start.params)
    tree.gradient(loop.inner_value(phi, start.at(theta), loop.draw(start, 0, 0)), theta)


def main() -> None:
    torch.set_num_threads(1)
    problems = {how: Language(how) for how in ("plain", "checkpoint", "remat")}
    calls: dict[str, Callable[[], object]] = {"gradient": partial(gradient, problems["plain"])}
    for segments in (1, 2):
        for how, problem in problems.items():
            calls[f"{how}, segments={segments}"] = partial(hypergradient, problem, segments)
    seconds = least_seconds(calls, repeats=3)
    unit = seconds.pop("gradient")
    exact = hypergradient(problems["plain"], 1)
    print(f"a gradient takes {unit:.2f} s")
    print(f"{'':<26}live MiB  of plain      G  of plain  gradient differs by")
    plain: dict[str, tuple[float, float]] = {}
    for name in seconds:
        with PeakMemory() as meter:
            grad = calls[name]()
        assert isinstance(grad, Tensor)
        live, cost = meter.peak / 2**20, seconds[name] / unit
        base = plain.setdefault(name.partition(", ")[2], (live, cost))
        gap = float((grad - exact).norm() / exact.norm())
        print(
            f"{name:<26}{live:8.0f}{live / base[0]:10.2f}{cost:7.1f}{cost / base[1]:10.2f}"
            f"{gap:21.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
