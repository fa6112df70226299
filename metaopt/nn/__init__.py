"""Networks that several families use."""

from metaopt.nn.mlp import MLP
from metaopt.nn.network import Architecture, Network

__all__ = ["MLP", "Architecture", "Network"]
