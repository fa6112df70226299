"""Reward models from noisy preference pairs: MetaRM, denoising by strength, weights of pairs.

Dou et al., "MetaRM: Shifted Distributions Alignment via Meta-Learning", arXiv 2405.00438, 2024
(AAAI 2025); Wang et al., "Secrets of RLHF in Large Language Models Part II: Reward Modeling",
arXiv 2401.06080, 2024.

| paper | here |
|---|---|
| theta, the reward model | phi = `outer` |
| theta' = theta + eta dJ(theta), the model one ascent step away | theta = `inner` |
| eta | `lr` of `inner_optimizer` |
| J, on k responses of the shifted policy | `task.reward_spread`; -J is `inner_loss` g |
| L, Bradley and Terry's loss on labelled pairs | `outer_loss` F |
| X_t, the preference pairs; X_s, the meta-set | `PreferenceTask.row_losses`; `.responses` |
| mu, sigma: mean and deviation of a pair's margins | `model.strength.Strength` |
| label flipping, adaptive margin, soft labels | `denoising.Denoised` |

Read first `meta_reward_model` (the two levels), then `task` (what pairs and models offer it, and
J), `feature_task` (small networks on frozen features, batched over seeds and ensembles),
`text_task` (a transformers model), `world_task` (a world of known gold reward), `denoising` (what
is done to labels first), `pair_weights` (a weight for every pair); `data/` (pairs and where they
come from, features of texts, the world and its policies), `model/` (the reward model, its tokens
and export, training, strengths, contrastive losses); `report` (tables and figures); `bench`
(accuracy of any saved model: `python -m metaopt.problems.reward_model.bench`).
"""

from metaopt.problems.reward_model.data.pair_sources import preferences
from metaopt.problems.reward_model.feature_task import FeaturePreferences
from metaopt.problems.reward_model.meta_reward_model import MetaRewardModel
from metaopt.problems.reward_model.pair_weights import PreferenceReweighting
from metaopt.problems.reward_model.world_task import PreferenceWorlds

__all__ = [
    "FeaturePreferences",
    "MetaRewardModel",
    "PreferenceReweighting",
    "PreferenceWorlds",
    "preferences",
]
