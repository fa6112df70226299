"""Preference pairs: HH-RLHF, PandaLM, LLMBar, a file of one's own, the hub; TRL's columns.

Dialogues of HH-RLHF are offensive on purpose, so nothing here prints, logs or quotes a row: what is
wrong with one is said by its number, its columns and their types.
"""

from metaopt.problems.reward_model.data.pairs.dialogue import conversation, plain
from metaopt.problems.reward_model.data.pairs.pairs import (
    Malformed,
    Message,
    Noisy,
    Pair,
    Preferences,
    flip,
    flips,
    noise,
    split,
    trl_rows,
)
from metaopt.problems.reward_model.data.pairs.sources import SHARED, preferences

__all__ = [
    "SHARED",
    "Malformed",
    "Message",
    "Noisy",
    "Pair",
    "Preferences",
    "conversation",
    "flip",
    "flips",
    "noise",
    "plain",
    "preferences",
    "split",
    "trl_rows",
]
