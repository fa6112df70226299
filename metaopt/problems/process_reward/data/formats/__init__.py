"""Chains of steps with labels: one schema, the published formats, and the meta-set."""

from metaopt.problems.process_reward.data.formats.chain import Chain, harden, truncate
from metaopt.problems.process_reward.data.formats.formats import (
    FORMATS,
    Chains,
    read,
    rows_of,
    write,
)
from metaopt.problems.process_reward.data.formats.gsm8k import gsm8k_solutions
from metaopt.problems.process_reward.data.formats.meta_set import leaked, meta_set, question_key

__all__ = [
    "FORMATS",
    "Chain",
    "Chains",
    "gsm8k_solutions",
    "harden",
    "leaked",
    "meta_set",
    "question_key",
    "read",
    "rows_of",
    "truncate",
    "write",
]
