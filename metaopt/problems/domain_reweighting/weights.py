"""What a training example counts: by a table, a network of its loss, or its gradient.

An example of weight 1 counts as it would without weights. Losses are linear in the weights.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, get_args

import torch
from torch import Generator, Tensor
from torch.nn.functional import relu, softplus

from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_choices, check_ranges

Per = Literal["domain", "row"]
Link = Literal["softplus", "softmax", "sigmoid", "clamp", "simplex"]
Reads = Literal["phi", "losses", "gradients"]

MIN_INITIAL_WEIGHT = 1e-6
"""Smallest weight that a link without a 0 starts from."""

SIMPLEX_TOLERANCE = 1e-3
"""Largest difference from 1 of the sum of a simplex."""


class Weights(Protocol):
    """Weights of examples as a function of the outer variable.

    Attributes:
        reads: what else they depend on: nothing (`phi`), the examples' losses, or their gradients.
    """

    reads: Reads

    def init(self, start: Tensor, domain: Tensor, generator: Generator) -> Tree:
        """Return the phi whose weights are nearest to `start`; only a `WeightTable` heeds it.

        Args:
            start: weights of all training examples, >= 0, (n,).
            domain: the domain of every training example, (n,).
        """
        ...

    def __call__(self, outer: Tree, rows: Tensor, domain: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of examples, (..., B).

        Args:
            outer: phi.
            rows, domain: index and domain of each, (B,).
            losses: (..., B); for weights that read gradients, their alignments; see there.
        """
        ...

    def slopes(self, grad: Tree, domain: Tensor) -> Tensor | None:
        """Return a hypergradient by domain, (K,); `None` where phi is not by domain or example."""
        ...


def by_domain(values: Tensor, domain: Tensor) -> Tensor:
    """Return the mean of values (n,) over the examples of each domain, (K,)."""
    count = torch.bincount(domain)
    return values.new_zeros(len(count)).index_add_(0, domain, values) / count


class WeightTable:
    """One entry of phi for each domain, or for each example.

    softplus: w = softplus(r) / mean softplus(r), what DreamPRM's code has; softmax: w = K
    softmax(r); simplex: w = K p, where p >= 0 sums to 1, for `MirrorDescent` (`check` refuses
    what other optimizers make of it). These three have mean 1.
    sigmoid: w = bound sigmoid(r); clamp: w = min(max(r, 0), bound): bounded, and their mean is
    free. An entry that `clamp` cuts off has no gradient and stays.

    With a leading axis of phi there are as many tables.

    Args:
        per: domain (K entries), or row (n entries: DreamPRM-1.5's instance table).
        link: one of the above.
        bound: largest weight of sigmoid and clamp, > 1.

    References: Cao et al., DreamPRM, NeurIPS 2025; Cao et al., DreamPRM-1.5, 2025 (rows, clamp);
    Shen et al., SEAL, 2024 (softmax, 2 sigmoid).
    """

    reads: Reads = "phi"

    def __init__(self, per: Per = "domain", link: Link = "softplus", bound: float = 2.0) -> None:
        self.per, self.link, self.bound = per, link, bound
        check_choices(self, per=get_args(Per), link=get_args(Link))
        check_ranges(self, "bound > 1")

    def init(self, start: Tensor, domain: Tensor, generator: Generator) -> Tree:
        """Return {"weights": (K,) or (n,)}; a domain starts at the mean of its examples."""
        return self.inverse(by_domain(start, domain) if self.per == "domain" else start)

    def inverse(self, weights: Tensor) -> Tree:
        """Return the phi of a table of weights, as near to it as link and bound allow."""
        positive = weights.clamp(min=MIN_INITIAL_WEIGHT)
        if self.link == "softplus":
            raw = torch.log(torch.expm1(math.log(2) * positive))
        elif self.link == "softmax":
            raw = torch.log(positive)
        elif self.link == "sigmoid":
            raw = torch.logit(positive.clamp(max=self.bound - MIN_INITIAL_WEIGHT) / self.bound)
        elif self.link == "clamp":
            raw = weights.clamp(max=self.bound)
        else:
            raw = weights / weights.sum(-1, keepdim=True)
        return {"weights": raw.clone()}

    def table(self, outer: Tree) -> Tensor:
        """Return all weights, (..., K) or (..., n)."""
        raw = outer["weights"]
        if self.link == "softplus":
            positive = softplus(raw)
            return positive / positive.mean(-1, keepdim=True)
        if self.link == "softmax":
            return torch.softmax(raw, -1) * raw.shape[-1]
        if self.link == "sigmoid":
            return self.bound * torch.sigmoid(raw)
        if self.link == "clamp":
            return raw.clamp(0, self.bound)
        return raw * raw.shape[-1]

    def check(self, outer: Tree) -> None:
        """Refuse a phi of link=simplex that has left the simplex.

        Raises:
            ValueError: an entry below 0, or a sum off 1 by more than 1e-3.
        """
        if self.link != "simplex":
            return
        raw = outer["weights"]
        least, off = torch.stack([raw.min(), (raw.sum(-1) - 1).abs().max()]).tolist()
        if not (least >= 0 and off <= SIMPLEX_TOLERANCE):
            raise ValueError(
                f"link=simplex needs entries >= 0 that sum to 1; got a least entry of {least:g} "
                f"and a sum off 1 by {off:g}. Use optimizer=mirror, or link=softmax with others."
            )

    def __call__(self, outer: Tree, rows: Tensor, domain: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of examples, (..., B)."""
        return self.table(outer)[..., domain if self.per == "domain" else rows]

    def slopes(self, grad: Tree, domain: Tensor) -> Tensor | None:
        """Return the hypergradient of each domain, summed over examples, averaged over tables."""
        slopes = grad["weights"]
        if slopes.ndim > 1:
            slopes = slopes.flatten(0, -2).mean(0)
        if self.per == "domain":
            return slopes
        return by_domain(slopes, domain) * torch.bincount(domain)


class WeightNetwork:
    """w = V(l; phi), a network of the example's loss: one number in, one hidden layer, sigmoid.

    Meta-Weight-Net. The loss goes in detached. Weights are in (0, 1); normalised, their mean over
    the batch is 1.

    Args:
        hidden: units with ReLU, >= 1.
        normalise: divide by the mean over the batch.

    Reference: Shu et al., Meta-Weight-Net, NeurIPS 2019.
    """

    reads: Reads = "losses"

    def __init__(self, hidden: int = 100, normalise: bool = True) -> None:
        self.hidden, self.normalise = hidden, normalise
        check_ranges(self, "hidden >= 1")

    def init(self, start: Tensor, domain: Tensor, generator: Generator) -> Tree:
        """Return weights and biases, uniform in +-1 / sqrt(inputs) as in `torch.nn.Linear`."""

        def uniform(*shape: int, inputs: int) -> Tensor:
            drawn = torch.rand(shape, generator=generator, dtype=start.dtype)
            return ((2 * drawn - 1) / math.sqrt(inputs)).to(start.device)

        h = self.hidden
        return {
            "hidden.weight": uniform(h, inputs=1), "hidden.bias": uniform(h, inputs=1),
            "weight": uniform(h, inputs=h), "bias": uniform(inputs=h),
        }  # fmt: skip

    def __call__(self, outer: Tree, rows: Tensor, domain: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of examples, (..., B)."""
        x = losses.detach()[..., None].to(outer["weight"].dtype)
        hidden = relu(x * outer["hidden.weight"] + outer["hidden.bias"])
        weights = torch.sigmoid((hidden * outer["weight"]).sum(-1) + outer["bias"])
        return weights / weights.mean(-1, keepdim=True) if self.normalise else weights

    def slopes(self, grad: Tree, domain: Tensor) -> Tensor | None:
        """Return `None`."""
        return None


class LearningToReweight:
    """w_i = max(u_i, 0) / mean_j max(u_j, 0), u_i = <dF/dtheta, dl_i/dtheta>, in each batch.

    The descent that example i brings to the meta-loss; nothing is learned, and phi is empty.
    All weights are 1 where no example brings any. Set estimator=direct: there is no hypergradient.

    Args:
        per: row; or domain, where u is averaged over the examples of one domain.

    Cost: for each inner step, one more gradient and two more forward passes.

    Reference: Ren et al., Learning to reweight examples, ICML 2018.
    """

    reads: Reads = "gradients"

    def __init__(self, per: Per = "row") -> None:
        self.per = per
        check_choices(self, per=get_args(Per))

    def init(self, start: Tensor, domain: Tensor, generator: Generator) -> Tree:
        """Return {"weights": (0,)}."""
        return {"weights": start.new_zeros(0)}

    def __call__(self, outer: Tree, rows: Tensor, domain: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of examples, (..., B), from their alignments u."""
        useful = losses
        if self.per == "domain":
            same = (domain[:, None] == domain[None, :]).to(losses.dtype)
            useful = losses @ (same / same.sum(0))
        useful = relu(useful)
        mean = useful.mean(-1, keepdim=True)
        return torch.where(mean > 0, useful / mean.clamp(min=torch.finfo(mean.dtype).tiny), 1.0)

    def slopes(self, grad: Tree, domain: Tensor) -> Tensor | None:
        """Return `None`."""
        return None
