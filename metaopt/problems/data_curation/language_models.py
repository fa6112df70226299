"""Small language models of characters, R of them in one batch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from metaopt.engine.protocols import Tree
from metaopt.engine.ranges import check_ranges


class NGramModels:
    """R neural n-gram models: p(x_t | x_{t-n+1} ... x_{t-1}), one hidden layer with tanh.

    Parameters have a leading axis R, and a loss is (R, B): a sum over R trains each model alone.

    Args:
        symbols: size of the alphabet, >= 2.
        order: n, >= 2.
        hidden: units, >= 1.
        models: R, >= 1.

    Reference: Bengio et al., A neural probabilistic language model, JMLR 2003.
    """

    def __init__(self, symbols: int, order: int = 4, hidden: int = 32, models: int = 4) -> None:
        self.symbols, self.order, self.hidden, self.models = symbols, order, hidden, models
        check_ranges(self, "symbols >= 2", "order >= 2", "hidden >= 1", "models >= 1")

    def init(self, generator: Generator) -> Tree:
        """Return parameters; those of a model do not depend on how many there are."""
        context, v, h = self.order - 1, self.symbols, self.hidden
        drawn = [
            (torch.randn(context, v, h, generator=generator) / (3 * context),
             torch.randn(h, v, generator=generator) / h**0.5)
            for _ in range(self.models)
        ]  # fmt: skip
        context_weights, weights = map(torch.stack, zip(*drawn, strict=True))
        return {
            "hidden.weight": context_weights, "hidden.bias": torch.zeros(self.models, 1, h),
            "weight": weights, "bias": torch.zeros(self.models, 1, v),
        }  # fmt: skip

    def losses(self, params: Tree, rows: Tensor) -> Tensor:
        """Return the mean cross-entropy of each row's characters after the first n - 1, (R, B).

        Args:
            params: as `init` returns them.
            rows: numbers of symbols, (B, L).
        """
        context, length = self.order - 1, rows.shape[1] - self.order + 1
        hidden = params["hidden.bias"]
        for k in range(context):
            # A gather is the product with one-hot symbols.
            symbols = rows[:, k : k + length].reshape(-1)
            hidden = hidden + params["hidden.weight"][:, k].index_select(1, symbols)
        logits = torch.baddbmm(params["bias"], torch.tanh(hidden), params["weight"])
        targets = rows[:, context:].reshape(-1).repeat(len(logits))
        losses = cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        return losses.reshape(len(logits), len(rows), length).mean(-1)
