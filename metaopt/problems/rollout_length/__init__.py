"""Adaptive rollout length of a model-based agent."""

from metaopt.problems.rollout_length.problem import RolloutLength

__all__ = ["RolloutLength"]
