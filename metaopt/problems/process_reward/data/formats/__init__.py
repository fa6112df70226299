"""Chains of steps with labels: one schema, and the formats that are published.

Reading order: `chain` (the schema), `reading` (files, folders and the hub; the table of formats),
then the families of formats: `step_lists` (TRL, ProcessBench, BIG-Bench-Mistake, responses with an
outcome), `math_shepherd`, `prm800k`, `dreamprm`. `columns` checks the columns of a row.
"""

from metaopt.problems.process_reward.data.formats.chain import Chain, harden, truncate
from metaopt.problems.process_reward.data.formats.columns import Renaming
from metaopt.problems.process_reward.data.formats.reading import FORMATS, read, write

__all__ = ["FORMATS", "Chain", "Renaming", "harden", "read", "truncate", "write"]
