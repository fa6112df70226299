"""Meta Pseudo Labels: a teacher learns from how its student does."""

from metaopt.problems.meta_pseudo_labels.problem import MetaPseudoLabels

__all__ = ["MetaPseudoLabels"]
