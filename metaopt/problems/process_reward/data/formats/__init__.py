"""Chains of steps with labels: one schema, and the formats that are published.

Reading order: `chain` (the schema), `reading` (files, folders and the hub; the table of formats),
then one module for each family of formats: `first_error` (ProcessBench, BIG-Bench-Mistake),
`stepwise` (TRL), `math_shepherd`, `prm800k`, `dreamprm` and `dreamprm15`, `solution` (responses
with an outcome). `columns` checks the columns of a row.
"""

from metaopt.problems.process_reward.data.formats.chain import Chain, harden, truncate
from metaopt.problems.process_reward.data.formats.reading import FORMATS, Chains, read, write

__all__ = ["FORMATS", "Chain", "Chains", "harden", "read", "truncate", "write"]
