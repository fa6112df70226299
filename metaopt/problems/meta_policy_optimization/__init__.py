"""Meta policy optimisation: a rubric that evolves while a policy trains under it.

Kim, Park, Raheja, Kim, Kang, "Toward Evaluative Thinking: Meta Policy Optimization with Evolving
Reward Models" (MPO), arXiv 2504.20157, 2025.

| paper | here |
|---|---|
| rubric r, outer variable | a text of items: `item_scores`, `metaopt.llm.rubric_items` |
| policy theta, inner level, warm | `policy.Policy`; exact in a simulated world: `TabularPolicy` |
| reward model (judge) under the rubric | role `judge`, `judging`, `item_scores` |
| meta reward model: analyse, refine, merge | role `meta`; `rewriting.Rewriter`, `prompts` |
| k updates between rewrites | `inner_steps` |
| n rollouts of a rewrite | `rollouts` |
| 7,500 episodes, 5 rewrites | `outer_steps` - 1 rewrites |
| KL coefficient | `TabularPolicy.kl_coefficient` |
| no outer value, every rewrite accepted | `Search(accept="always", keep="latest")` |

Read in this order: `problem` (both levels), `policy` (what a policy is), `rollouts`, `rewriting`
and `prompts`, `judging` and `item_scores`, `labels` (a gate and a fit, where there are labels);
then the simulated world, `vocabulary`, `rubric_world`, `simulated_meta_judge`, `tabular_policy`;
then what a run hands over, `report`, and `saved_rubric`, which loads it again. `text_policy` has
the policy that is a language model.
"""

from metaopt.problems.meta_policy_optimization.policy import Policy, Reward, Truth
from metaopt.problems.meta_policy_optimization.problem import MetaPolicyOptimization
from metaopt.problems.meta_policy_optimization.rubric_world import RubricWorld
from metaopt.problems.meta_policy_optimization.saved_rubric import SavedRubric, load_rubric
from metaopt.problems.meta_policy_optimization.tabular_policy import TabularPolicy

__all__ = [
    "MetaPolicyOptimization",
    "Policy",
    "Reward",
    "RubricWorld",
    "SavedRubric",
    "TabularPolicy",
    "Truth",
    "load_rubric",
]
