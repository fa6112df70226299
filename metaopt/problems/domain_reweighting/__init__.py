"""Domain reweighting: weights of the loss, learned on a meta-set."""

from metaopt.problems.domain_reweighting.problem import DomainReweighting

__all__ = ["DomainReweighting"]
