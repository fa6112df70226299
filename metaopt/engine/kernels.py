"""Blocks that keep torch to implementations which estimators can differentiate or replay."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules as they are written, and transformer layers without their fast path.

    A compiled call has no second derivative and no forward mode, and does not show the calls that
    it makes; the fast path of `nn.TransformerEncoderLayer` has no derivative, and is taken or not
    depending on which tensors require one.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Nothing is compiled before dynamo is loaded, which takes a second.
        if "torch._dynamo" in sys.modules:
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run `eager`, with attention by torch's plain kernel: the fused ones have one derivative."""
    with eager(), sdpa_kernel(SDPBackend.MATH):
        yield
