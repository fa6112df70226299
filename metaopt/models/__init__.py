"""Networks, each made from the shape of one input and the number of classes."""

from metaopt.models.convnet import ConvNet
from metaopt.models.mlp import MLP
from metaopt.models.network import Architecture, Network
from metaopt.models.reduced import Reduced
from metaopt.models.wide_resnet import WideResNet

__all__ = ["MLP", "Architecture", "ConvNet", "Network", "Reduced", "WideResNet"]
