"""Bradley and Terry's loss, and many reward models on features trained by it as one batch.

Nothing here imports transformers: runs on features start without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from metaopt.nn.stacked_features import FeatureReward


class Recipe(NamedTuple):
    """How a reward model is trained: AdamW at a constant step size.

    Args:
        lr: step size, >= 0.
        betas: decay of AdamW's two running means.
        weight_decay: decoupled, >= 0.
        batch: pairs in a step, >= 1; all of them where there are fewer.
        epochs: passes over the pairs, >= 1; what is left of a pass after its last whole batch
            waits for the next pass.
    """

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    batch: int = 64
    epochs: int = 2


class Targets(NamedTuple):
    """What each pair is trained towards; all of (R, n).

    Args:
        swap: whether the answers are exchanged first; label and margin are those of the pair after
            that.
        label: q, the probability that the first answer is the better one, in [0, 1].
        margin: m, what is asked of their difference.
        weight: factor of the pair's loss, >= 0, with mean 1 over a run's pairs.
    """

    swap: Tensor
    label: Tensor
    margin: Tensor
    weight: Tensor

    def at(self, runs: Tensor, rows: Tensor) -> Targets:
        """Return the targets of rows (G, B) of runs (G, 1)."""
        return Targets(*(part[runs, rows] for part in self))

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the weighted losses of rewards, all of one shape; see `bradley_terry`."""
        first = torch.where(self.swap, rejected, chosen)
        second = torch.where(self.swap, chosen, rejected)
        return self.weight * bradley_terry(first, second, self.margin, self.label)


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Return each pair's negative log-likelihood under Bradley and Terry's model.

    L = -q log sigma(d) - (1 - q) log sigma(-d),   d = r(chosen) - r(rejected) - m.

    The margin m is inside the sigmoid, where it has a gradient: a larger one asks for a larger
    difference, and a negative one allows the pair to be in the wrong order by |m|. Exchanging the
    answers, negating m and taking 1 - q leaves the loss as it is.

    Args:
        chosen, rejected: rewards, of one shape.
        margin: m, of that shape; `None` for 0. Nothing is broadcast, because margins (B,) and
            rewards (B, 1) would silently make (B, B) pairs.
        label: q, the probability that `chosen` is the better answer, in [0, 1], of that shape;
            `None` for 1. With label smoothing a it is 1 - a.

    Returns:
        Losses >= 0 in nats, of that shape; their mean is the usual objective.

    Raises:
        ValueError: shapes that differ.

    References: Bradley and Terry, Biometrika 1952; Touvron et al., Llama 2, 2023 (margin).
    """
    for name, value in (("rejected", rejected), ("margin", margin), ("label", label)):
        if value is not None and value.shape != chosen.shape:
            raise ValueError(
                f"{name} must have the shape of chosen, {tuple(chosen.shape)}; got "
                f"{tuple(value.shape)}. Expand it first; nothing is broadcast."
            )
    d = chosen - rejected
    if margin is not None:
        d = d - margin
    if label is None:
        return -logsigmoid(d)
    return -label * logsigmoid(d) - (1 - label) * logsigmoid(-d)


def batches(generators: Sequence[Generator], rows: Tensor, recipe: Recipe) -> Tensor:
    """Return which pairs each step sees, (R k, steps, batch): rows in a new order each epoch.

    Orders of run i are drawn from generator i alone, and from nothing else, so methods that are
    given generators in one state see identical batches.

    Args:
        generators: one per run.
        rows: indices of the pairs of k models a run, (R, k, m).
        recipe: batch size and epochs.

    Raises:
        ValueError: a number of the recipe out of its range, rows of another shape.
    """
    if min(recipe.batch, recipe.epochs) < 1 or min(recipe.lr, recipe.weight_decay) < 0:
        raise ValueError(
            f"a recipe needs batch >= 1, epochs >= 1, lr >= 0 and weight_decay >= 0; got {recipe}."
        )
    if rows.ndim != 3 or len(rows) != len(generators) or rows.shape[-1] < 1:
        raise ValueError(
            f"rows must be (R, models, pairs >= 1) with R = {len(generators)}, the number of "
            f"generators; got {tuple(rows.shape)}."
        )
    size = rows.shape[-1]
    batch = min(recipe.batch, size)
    steps = size // batch
    orders = []
    for generator, models in zip(generators, rows, strict=True):
        for pairs in models:
            for _ in range(recipe.epochs):
                order = torch.randperm(size, generator=generator, device=generator.device)
                orders.append(pairs[order[: steps * batch]])
    return torch.stack(orders).view(-1, recipe.epochs * steps, batch)


def every(pairs: Tensor, models: int = 1) -> Tensor:
    """Return the rows (R, models, n) of models that see all of a run's pairs (R, n, ...)."""
    runs, count = pairs.shape[:2]
    return torch.arange(count, device=pairs.device).expand(runs, models, count)


def fit(
    model: FeatureReward,
    params: Mapping[str, Tensor],
    chosen: Tensor,
    rejected: Tensor,
    rows: Tensor,
    recipe: Recipe | None = None,
) -> dict[str, Tensor]:
    """Return the parameters after training on labelled pairs.

    Each model minimises the mean of its batches' losses. The models are trained at once, and none
    depends on the others.

    Args:
        model: the architecture.
        params: tensors with a leading axis G = R k, a run's k models one after the other; they are
            left as they are.
        chosen, rejected: features (R, n, d).
        rows: pairs of each step, (G, steps, batch), as `batches` returns them.
        recipe: step size, betas and weight decay; `None` for the defaults.

    Raises:
        ValueError: G is not a multiple of R, or rows are not those of G models.
    """
    recipe = recipe or Recipe()
    trained = {name: value.clone().requires_grad_() for name, value in params.items()}
    models, runs = len(trained["0.weight"]), len(chosen)
    if models % runs or len(rows) != models:
        raise ValueError(
            f"fit needs as many models for each of {runs} runs, and rows for each model; got "
            f"{models} models and rows of {len(rows)}."
        )
    run = torch.arange(models, device=chosen.device)[:, None] // (models // runs)
    adam = torch.optim.AdamW(
        trained.values(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    both = torch.stack((chosen, rejected), 2)
    for step in range(rows.shape[1]):
        first, second = model.rewards(trained, both[run, rows[:, step]]).unbind(-1)
        adam.zero_grad()
        # A sum over models: each trains as it would alone.
        bradley_terry(first, second).mean(-1).sum().backward()
        adam.step()
    return {name: value.detach() for name, value in trained.items()}


def ordered(margin: Tensor) -> Tensor:
    """Return the share of margins (..., n) that are positive, (...,); zeros count half."""
    return (margin > 0).float().mean(-1) + (margin == 0).float().mean(-1) / 2
