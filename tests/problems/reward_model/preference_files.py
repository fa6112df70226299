"""Rows of preferences, and the files that hold them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from metaopt.problems.reward_model.data.pair import Message, Pair
from metaopt.problems.reward_model.data.pair_sources import preferences

ROWS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "yes"}
BAD = {"role": "assistant", "content": "no"}
CONVERSATION = Pair(
    (Message("user", "q"),), (Message("assistant", "yes"),), (Message("assistant", "no"),)
)


def write(path: Path, *rows: object) -> str:
    lines = "".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows)
    data = lines.encode(errors="surrogatepass")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def one(tmp_path: Path, row: object) -> Pair:
    (pair,) = preferences(write(tmp_path / "a.jsonl", row)).pairs
    return pair


def bare(pair: Pair) -> Pair:
    return pair._replace(section="", row=0)
