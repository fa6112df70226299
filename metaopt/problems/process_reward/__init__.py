"""Process reward models: the probability that a solution is right up to and with each step.

The application of DreamPRM (Cao et al., NeurIPS 2025): step labels of several data sets below,
outcomes of a meta-set above, best-of-n as the test. Labels come from files (Math-Shepherd, PRM800K,
ProcessBench and others) or from rollouts (Wang et al., Math-Shepherd, ACL 2024).

| paper | here |
|---|---|
| p_i, the label of step i: share of its rollouts that end right | `Chain.labels` |
| sigma(V(x, y_1..y_i)), the score of step i | `StepScorer.logits`, as log-odds z |
| A, the aggregate over the steps | `model.aggregation.aggregate` |
| r, whether the final answer is right | `Chain.outcome` |

Reading order: `task` (the losses of both levels, and the test), `data/dataset` and `data/formats`
(chains of steps and how they are published), `data/process_files` (your own files),
`data/arithmetic` (a simulated world whose truth is known), `model/steps` (what a scorer is),
`model/scorer` (transformers) and `model/feature_scorer`, `model/export` (folders that transformers
loads), `labelling/rollouts` (step labels; the command is `metaopt-label`), `report`.
"""

from metaopt.problems.process_reward.task import ProcessSupervision

__all__ = ["ProcessSupervision"]
