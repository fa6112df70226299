"""How many tokens a transformers model has learned positions for."""

from __future__ import annotations

from torch import nn

TABLES = ("wpe", "position_embeddings", "position_embedding", "embed_positions")
"""Names that transformers gives to tables of positions."""


def positions(backbone: nn.Module) -> int | None:
    """Return the most tokens that a learned table of positions has room for; `None` without one.

    Some tables keep their first rows for other ends: RoBERTa's those up to the pad token's, OPT's
    `offset`.
    """
    rooms = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in TABLES:
            pad = -1 if module.padding_idx is None else module.padding_idx
            rooms.append(module.num_embeddings - getattr(module, "offset", pad + 1))
    return min(rooms, default=None)
