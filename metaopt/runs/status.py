"""The words for what has become of a run: in sweeps, searches, `metaopt ls` and heartbeats."""

from __future__ import annotations

from typing import Literal

Status = Literal[
    "waiting", "running", "elsewhere", "finished", "pruned", "failed", "interrupted", "killed",
    "unreadable",
]  # fmt: skip
"""Interrupted is a run that a signal stopped, with a checkpoint; of one that was killed, the
process has ended without a word. A cell is elsewhere where another command computes it."""

OVER: tuple[Status, ...] = ("finished", "pruned", "failed")
"""What becomes of a run that a worker has brought to its end."""
