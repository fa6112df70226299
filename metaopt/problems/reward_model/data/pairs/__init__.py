"""Preference pairs: generated ones, files, the hub, HH-RLHF, PandaLM, LLMBar.

Dialogues of HH-RLHF are offensive on purpose, so nothing here prints, logs or quotes a row: what is
wrong with one is said by its number, its columns and their types.
"""

from metaopt.problems.reward_model.data.pairs.dialogue import conversation, plain
from metaopt.problems.reward_model.data.pairs.pair import (
    Malformed,
    Message,
    Pair,
    Preferences,
    flips,
    split,
    with_noise,
)
from metaopt.problems.reward_model.data.pairs.sources import SHARED, preferences

__all__ = [
    "SHARED",
    "Malformed",
    "Message",
    "Pair",
    "Preferences",
    "conversation",
    "flips",
    "plain",
    "preferences",
    "split",
    "with_noise",
]
