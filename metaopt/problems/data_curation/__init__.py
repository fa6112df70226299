"""Data curation: tasks whose training rows are weighted, rated and filtered.

What `domain_reweighting` learns weights of; it imports nothing of that family. Calian et al.,
DataRater: Meta-Learned Dataset Curation, 2025, has the population of small models and the rater.

Reading order: `languages` (made-up text), `text_world` (rows of known worth), `language_models`
(n-gram models, R in a batch), `text_task` (the two levels' losses).

Models of transformers: `trl_rows` (rows in TRL's formats, checked), `sequences` (their tokens),
`objectives` (the losses of SFT, DPO, reward and process reward models), `model` (all weights,
adapters, or the head), `rows` (files and domains), `task` (the losses of both levels),
`generated_rows` (domains of known worth), `export` (folders that transformers loads).
"""

from metaopt.problems.data_curation.objectives import DPO, SFT, ProcessReward, Reward
from metaopt.problems.data_curation.task import TransformersRows
from metaopt.problems.data_curation.text_task import TextRows
from metaopt.problems.data_curation.text_world import text_world

__all__ = ["DPO", "SFT", "ProcessReward", "Reward", "TextRows", "TransformersRows", "text_world"]
