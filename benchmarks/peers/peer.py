"""What a library has to say to be compared: its packages and its outer steps of each case."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Loop = Callable[[Any, float], Iterator[Tensor]]
"""Takes outer steps on a problem of `case`, by descent on phi at a rate, and yields phi."""

FILES = {
    "higher": "with_higher",
    "torchopt": "with_torchopt",
    "betty": "with_betty",
    "boat": "with_boat",
    "formulas": "formulas",
}
"""The file of each peer; no file has the name of the package that it imports."""


class Weights(torch.nn.Module):
    """phi of `case.Reweighting` as a module, for libraries whose levels are modules."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.phi = torch.nn.Parameter(torch.zeros(rows, dtype=torch.float64))


@dataclass(frozen=True)
class Peer:
    """A library, by what is installed for it and how it is used; importing this needs none of it.

    Args:
        title: its name in the table.
        module: what is imported.
        requirements: what pip installs, without dependencies; empty for no environment.
        loops: by the name of a case, as the library's documentation writes them.
        differs: by the name of a case, why its outer steps are not metaopt's.
    """

    title: str
    module: str
    requirements: tuple[str, ...]
    loops: Mapping[str, Loop]
    differs: Mapping[str, str] = field(default_factory=dict)


def load(name: str) -> Peer:
    """Return a peer by its name in `FILES`."""
    peer: Peer = importlib.import_module(f"benchmarks.peers.{FILES[name]}").PEER
    return peer
