"""Two processes under gloo, and a problem whose union of batches one process can have."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import FORKING

from metaopt import GradientProblem
from metaopt.engine.random import fold, generator

ROWS, RANKS = 6, 2


class Rows(GradientProblem):
    """Weighted regression; in one process a batch is the union of what two ranks draw."""

    def __init__(self, inner_optimizer):
        self.inner_optimizer = inner_optimizer
        self.truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def init_outer(self, generator):
        return {"log_weight": torch.zeros(3, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"theta": torch.zeros(3, dtype=torch.float64)}

    def inner_batch(self, draw):
        return self.rows(draw.generator.initial_seed(), "inner")

    def outer_batch(self, draw):
        return self.rows(draw.generator.initial_seed(), "outer")

    def rows(self, seed, purpose):
        x = torch.randn(ROWS, 3, generator=generator(fold(seed, purpose)), dtype=torch.float64)
        return x, x @ self.truth + torch.sin(5 * x[:, 0])

    def inner_loss(self, outer, inner, batch):
        x, y = batch
        penalty = (outer["log_weight"].exp() * inner["theta"] ** 2).sum()
        return ((x @ inner["theta"] - y) ** 2).mean() + 0.1 * penalty

    def outer_loss(self, outer, inner, batch):
        x, y = batch
        return ((x @ inner["theta"] - y) ** 2).mean()


class Union(Rows):
    """The same rows in a single process: those of rank 0 followed by those of rank 1."""

    def inner_loss(self, outer, inner, batch):
        return sum(super(Union, self).inner_loss(outer, inner, b) for b in batch) / RANKS

    def outer_loss(self, outer, inner, batch):
        return sum(super(Union, self).outer_loss(outer, inner, b) for b in batch) / RANKS

    def inner_batch(self, draw):
        return [self.rows(fold(draw.key, draw.stream, rank), "inner") for rank in range(RANKS)]

    def outer_batch(self, draw):
        return [self.rows(fold(draw.key, draw.stream, rank), "outer") for rank in range(RANKS)]


def worker(rank, work, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    try:
        torch.save(work(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def spawn(work, folder):
    """Run `work(rank)` in two processes and return both results.

    They are forked from one that has imported the packages, which takes most of the time.
    """
    (folder / "store").unlink(missing_ok=True)
    method = FORKING.get_start_method()
    mp.start_processes(worker, (work, str(folder)), nprocs=RANKS, start_method=method)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
