"""Reward design: a language model writes the reward, reinforcement learning says what it was worth.

Shengjie Sun, Runze Liu, Jiafei Lyu, Jing-Wen Yang, Liangpeng Zhang and Xiu Li, "A Large Language
Model-Driven Reward Design Framework via Dynamic Feedback for Reinforcement Learning" (CARD),
Knowledge-Based Systems, 2025, arXiv 2410.14660.

| paper | here |
|---|---|
| reward function R, outer variable | a text in the reward `language` |
| the environment's variables | `variables` |
| RL training of a policy | `Trainer`, `ActorCritic` |
| trajectory preference evaluation, TPE | `TrajectoryPreference`, `Gate` |

Read first `training` (what one training under a reward leaves behind) and `trainer` (the inner
level: deep Q-learning in the true environment under designed rewards), with `actor_critic` and
`designed_vector` (learners of a library, for actions that are vectors); `recording` and `returns`
(episodes, and what a reward gives for them); `tpe` and `gate` (trajectory preference evaluation on
recorded episodes), `demonstrations` (episodes from elsewhere); `language/` (what a reward may say),
`variables/` (what it may read of an environment), `tasks` (what a coder is told of it); `prompts`,
`feedback`, `coder` and `proposing` (how it is asked), `simulated_coder` and `guessing`; `problem`
(the two levels), `report`, `export` and `figures` (what a run hands over); `bank`, `reward_bank`
and `bank_analysis` (the test, after the fact).
"""

from metaopt.problems.reward_design.actor_critic import ActorCritic
from metaopt.problems.reward_design.problem import RewardDesign

__all__ = ["ActorCritic", "RewardDesign"]
