"""Reward models from noisy preferences: MetaRM, and weights of pairs."""

from metaopt.problems.reward_model.meta_reward_model import MetaRewardModel

__all__ = ["MetaRewardModel"]
