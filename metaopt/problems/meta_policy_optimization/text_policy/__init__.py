"""A policy that is a causal language model, trained by GRPO.

Read in this order: `grpo` (advantages and the surrogate), `responses` (samples and their
log-probabilities), `worlds` (what it is trained on), `policy` (an update, and what is measured);
then `prompt_file` (queries of yours, whose truth nobody knows) with `telltales`, `notice_world` (a
task of known truth) with `teaching`.
"""

from metaopt.problems.meta_policy_optimization.text_policy.grpo import GRPO
from metaopt.problems.meta_policy_optimization.text_policy.notice_world import NoticeWorld
from metaopt.problems.meta_policy_optimization.text_policy.policy import TextPolicy
from metaopt.problems.meta_policy_optimization.text_policy.prompt_file import PromptFile

__all__ = ["GRPO", "NoticeWorld", "PromptFile", "TextPolicy"]
