"""A world of planted behaviours, and readers of its texts that play the language models.

Read in this order: `vocabulary` (what its texts say, and how a reader of English finds it in them),
`feedback_world` (trajectories with feedback), `readers` (extractor, judge, grounder, rewriter).
"""

from metaopt.problems.metric_induction.world.feedback_world import FeedbackWorld

__all__ = ["FeedbackWorld"]
