"""Blocks that say how torch runs: by which implementations, and under which function modes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class eager:
    """Run compiled modules as they are written, and transformer layers without their fast path.

    A compiled call has no second derivative and no forward mode, and does not show the calls that
    it makes; the fast path of `nn.TransformerEncoderLayer` has no derivative, and is taken or not
    depending on which tensors require one.
    """

    # Classes, not generator functions: every outer step enters one.
    def __enter__(self) -> None:
        self._fast = torch.backends.mha.get_fastpath_enabled()
        self._stance: AbstractContextManager[None] | None = None
        # Nothing is compiled before dynamo is loaded, which takes a second.
        if "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")
            self._stance.__enter__()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *error: Any) -> None:
        torch.backends.mha.set_fastpath_enabled(self._fast)
        if self._stance is not None:
            self._stance.__exit__(*error)


_ATTENTION = [
    (getattr(torch._C, f"_get_{name}_sdp_enabled"), getattr(torch._C, f"_set_sdp_use_{name}"), name)
    for name in ("math", "flash", "mem_efficient", "cudnn", "overrideable")
    if hasattr(torch._C, f"_set_sdp_use_{name}")
]
"""What tells whether a kernel of attention may be used, and what sets it."""


class twice_differentiable(eager):
    """Run `eager`, with attention by torch's plain kernel: the fused ones have one derivative."""

    # Not by `sdpa_kernel(SDPBackend.MATH)`, which takes as long as the loss of a small network.
    def __enter__(self) -> None:
        super().__enter__()
        self._kernels = [enabled() for enabled, _, _ in _ATTENTION]
        for _, enable, name in _ATTENTION:
            enable(name == "math")

    def __exit__(self, *error: Any) -> None:
        for (_, enable, _), value in zip(_ATTENTION, self._kernels, strict=True):
            enable(value)
        super().__exit__(*error)


def current_function_modes() -> list[TorchFunctionMode]:
    """Return the active function modes, the innermost last."""
    return [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]


@contextmanager
def function_modes(modes: Sequence[TorchFunctionMode]) -> Iterator[None]:
    """Run under these function modes in place of the active ones."""
    active = [torch._C._pop_torch_function_stack() for _ in current_function_modes()]
    try:
        for mode in modes:
            torch._C._push_on_torch_function_stack(mode)
        yield
    finally:
        for _ in current_function_modes():
            torch._C._pop_torch_function_stack()
        for mode in reversed(active):
            torch._C._push_on_torch_function_stack(mode)
