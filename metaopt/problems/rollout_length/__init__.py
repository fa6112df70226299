"""Adaptive rollout length of a model-based agent.

Abhinav Bhatia, Philip S. Thomas and Shlomo Zilberstein, "Adaptive Rollout Length for Model-Based RL
Using Model-Free Deep RL", arXiv 2206.02380, 2022. The outer level is a decision process: in each
phase of an agent's learning it sets how many steps k of the learned model a rollout takes.

| paper | here |
|---|---|
| rollout length k, at most 32 | `outer`, (R) integers; `Planner.cap` |
| agent, Dyna-style DQN | `QNetwork`, `Planner`, `act` |
| model: next state, reward, termination | `WorldModel` |
| steps between two decisions, their number T | `phase` P, `decisions` |
| observation of the meta-policy, (R, 5) | `Runs.features`, `model_errors` |
| actions UP, DOWN, NOOP | `Ladder` |
| meta-policy, DQN | `policies.DQN` |
| META's inner runs | `training_episodes` x `runs` |

Read first `problem` (the two levels), then `acting` (a phase of real steps), `planning` (rollouts
and their updates), `world_model`, `evaluation` (scores and errors of the model), `state`,
`options`; `policies/` (what sets the length); `report` and `schedules` (tables and figures).
Environments, Q-networks and the loop of acting and learning are in `metaopt.environments`.
"""

from metaopt.problems.rollout_length.problem import RolloutLength

__all__ = ["RolloutLength"]
