"""Metric induction: metrics for an agent, written from people's feedback.

Zhu et al., "AutoLibra: Agent Metric Induction from Open-Ended Human Feedback", ICLR 2026,
arXiv 2505.02820.

| paper | here |
|---|---|
| metrics: name, definition, good and bad behaviours | a text: `metric_set` |
| feedback grounding into aspects | role `extractor`, `Aspect` |
| LM as a judge, ratings +1, 0, -1 | role `judge` |
| matching of aspects and traits | role `grounder` |
| behaviour clustering, new metrics from uncovered aspects | role `rewriter` |
| coverage, redundancy | `metaopt.metrics.traits` |
| loop while coverage does not fall | `until_coverage_falls`, `Search(accept="always")` |

Read in this order: `problem` (both levels), `metric_set` (the outer variable), `prompts` (what is
asked and read), `measuring` (ratings, matches, counts), `first_sets` (baselines), `data` (your own
file); then `world/` (planted behaviours, simulated readers), `truth` (scores against them),
`report` and `figures`.
"""

from metaopt.problems.metric_induction.data import FeedbackFile
from metaopt.problems.metric_induction.problem import MetricInduction
from metaopt.problems.metric_induction.world import FeedbackWorld

__all__ = ["FeedbackFile", "FeedbackWorld", "MetricInduction"]
