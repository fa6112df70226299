"""Networks, each made from the shape of one input and the number of classes."""

from metaopt.problems.meta_pseudo_labels.models.convnet import ConvNet
from metaopt.problems.meta_pseudo_labels.models.reduced import Reduced
from metaopt.problems.meta_pseudo_labels.models.wide_resnet import WideResNet

__all__ = ["ConvNet", "Reduced", "WideResNet"]
