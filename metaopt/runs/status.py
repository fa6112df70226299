"""The words for what has become of a run: in sweeps, searches, `metaopt ls` and heartbeats."""

from __future__ import annotations

from typing import Literal

Status = Literal[
    "waiting", "running", "finished", "pruned", "failed", "interrupted", "killed", "unreadable"
]
"""Interrupted is a run that a signal stopped, with a checkpoint; of one that was killed, the
process has ended without a word."""

OVER: tuple[Status, ...] = ("finished", "pruned", "failed")
"""What becomes of a run that a worker has brought to its end."""
