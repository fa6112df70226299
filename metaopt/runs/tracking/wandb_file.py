"""A run's `.wandb` file: records of protobuf in the log format of LevelDB.

A file is a header of 7 bytes and blocks of 32 KiB. A record is one chunk, or one for each block
that it reaches into; a chunk has the CRC-32 of its place and its data, the length of its data, and
its place in the record. wandb writes and reads the files in Go and has no reader for Python.

Source: LevelDB's page `log_format.md`, and `core/pkg/leveldb` of wandb.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK = 32768
CHUNK = struct.Struct("<IHB")
WHOLE, FIRST, _, LAST = 1, 2, 3, 4


def messages(content: bytes, start: int = 0) -> Iterator[bytes]:
    """Yield the serialised records of a file, up to where it is cut or damaged.

    Args:
        content: of the file, from `start` on.
        start: a multiple of the size of a block; the rest of a record that begins before is left
            out.
    """
    at, parts = (0 if start else len(HEADER)), list[bytes]()
    while at + CHUNK.size <= len(content):
        if BLOCK - at % BLOCK < CHUNK.size:  # padding
            at += BLOCK - at % BLOCK
            continue
        crc, length, kind = CHUNK.unpack_from(content, at)
        at += CHUNK.size
        data = content[at : at + length]
        at += length
        if len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != crc:
            return
        if kind in (WHOLE, FIRST):
            parts = [data]
        elif parts:
            parts.append(data)
        if kind in (WHOLE, LAST) and parts:
            yield b"".join(parts)


def is_finished(path: Path) -> bool:
    """Return whether a file has the exit of its run at its end: it was then written as a whole.

    wandb says nothing of a disk that is full.
    """
    from wandb.proto import wandb_internal_pb2

    parse: Any = wandb_internal_pb2
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size // BLOCK - 1) * BLOCK  # two blocks: the exit may begin in the first
        file.seek(start)
        last = messages(file.read(), start)
        return any(parse.Record.FromString(message).HasField("exit") for message in last)
