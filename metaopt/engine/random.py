"""Counter-based randomness: every draw is a pure function of a key, so nothing needs saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def fold(key: int, *ids: int | str) -> int:
    """Return a new key from a key and the names of what it is for.

    `fold(seed, outer_step, "batch")` is one of 2**63 keys, the same on every machine and in every
    process; torch's generator on a processor uses the low 32 bits of one. Different names give
    unrelated keys, and `fold(fold(k, a), b)` differs from `fold(k, a, b)`.
    """
    name = "\x1f".join(f"{type(i).__name__[0]}{i}" for i in (key, *ids))
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def generator(key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by `key`."""
    return torch.Generator(device).manual_seed(key)


@contextmanager
def replay(key: int) -> Iterator[None]:
    """Seed torch's global generators with `key` inside the block and restore them after it.

    Dropout and other layers draw from the global generators. Two evaluations under the same key
    see the same masks, which a finite difference needs.
    """
    cpu = torch.default_generator
    saved = cpu.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        cpu.manual_seed(key)
        if cuda is not None:
            torch.cuda.manual_seed_all(key)
        yield
    finally:
        cpu.set_state(saved)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
