"""Domain reweighting: the weight of each training domain, learned from a meta-loss (DreamPRM).

Cao et al., DreamPRM: Domain-Reweighted Process Reward Model, NeurIPS 2025. A domain is a data set,
and a good weight is one whose model does well on a meta-set that can be trusted.

| paper | here |
|---|---|
| alpha, the domain weights | `outer["weights"]`, through a link: `weights.WeightTable` |
| phi, the reward model | `inner`, the task's parameters |
| L_tr, the weighted training loss | `DomainReweighting.inner_loss`, g |
| L_meta | `DomainReweighting.outer_loss`, F |
| D_k, D_meta | `ReweightingTask.domain`, `ReweightingTask.meta_rows` |

Reading order: `problem` (the two levels), `task` (what a model and its data offer), `weights`
(tables, networks and gradients as weights), `batches`, `options` (which settings go together),
`phases` (references, retraining, the uniform baseline), `diagnostics` (whether a weight is noise),
`report`. The task of the paper, a process reward model, is the family
`process_reward`; any object with the methods of `task.ReweightingTask` is another one.
"""

from metaopt.problems.domain_reweighting.problem import DomainReweighting

__all__ = ["DomainReweighting"]
