"""Networks, each made from the shape of one input and the number of classes."""

from metaopt.models.mlp import MLP
from metaopt.models.network import Architecture, Network

__all__ = ["MLP", "Architecture", "Network"]
