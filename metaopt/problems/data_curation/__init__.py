"""Data curation: tasks whose training rows are weighted, rated and filtered.

What `domain_reweighting` learns weights of; it imports nothing of that family. Calian et al.,
DataRater: Meta-Learned Dataset Curation, 2025, has the population of small models and the rater.

Reading order: `languages` (made-up text), `text_world` (rows of known worth), `language_models`
(n-gram models, R in a batch), `text_task` (the two levels' losses).
"""

from metaopt.problems.data_curation.text_task import TextRows
from metaopt.problems.data_curation.text_world import text_world

__all__ = ["TextRows", "text_world"]
