"""Meta Pseudo Labels: a teacher learns from how well its student does.

Hieu Pham, Zihang Dai, Qizhe Xie and Quoc V. Le, "Meta Pseudo Labels", CVPR 2021.

| paper | here |
|---|---|
| teacher T, theta_T | `teacher`, phi = `outer` |
| student S, theta_S | `student`, theta = `inner` |
| labelled (x_l, y_l), unlabelled x_u | `Examples.labelled`, `classes`; `weak` and `strong` views |
| pseudo labels T(x_u; theta_T), hard or soft | `labels` = sample or soft |
| L_u, the student's loss on x_u | `inner_loss` g |
| L_l, the student's loss on x_l | `feedback_loss`, part of `outer_loss` F |
| h, the feedback coefficient | estimator `ScoreFunction(feedback="loss_difference")` |
| UDA | `Consistency` |
| Reduced Meta Pseudo Labels | model `Reduced` |
| fine-tuning of the student | `FineTuning` |

Read first `problem` (the two levels), then `losses`, `phases` (before and after the outer loop),
`evaluation`, `report` (decision boundaries); `data/` (data sets, your own images, augmentations),
`models` (networks).
"""

from metaopt.problems.meta_pseudo_labels.problem import MetaPseudoLabels

__all__ = ["MetaPseudoLabels"]
