"""Preference pairs: HH-RLHF, PandaLM, LLMBar, a file of one's own, the hub; TRL's columns.

Dialogues of HH-RLHF are offensive on purpose, so nothing here prints, logs or quotes a row: what is
wrong with one is said by its number, its columns and their types.
"""

from metaopt.data.preferences.dialogue import conversation, plain
from metaopt.data.preferences.pairs import (
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
from metaopt.data.preferences.rows import Columns
from metaopt.data.preferences.sources import SHARED, preferences

__all__ = [
    "SHARED",
    "Columns",
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
