"""Precisions of a model by name, and half precision on a CPU that emulates it."""

from __future__ import annotations

import functools
import logging
import platform

import torch

PRECISIONS = {
    "float32": (torch.float32, None),
    "master": (torch.float32, torch.bfloat16),
    "official": (torch.bfloat16, torch.bfloat16),
}
"""Of trained weights, and of the computation where that is another one. Frozen weights are in the
precision of the computation."""

X86 = ("x86_64", "AMD64", "i386", "i686")


def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16; `True` where that is not known."""
    if platform.machine() not in X86:
        return True
    kinds = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, kind, lambda: True)() for kind in kinds)


@functools.cache
def say_if_slow(dtype: torch.dtype | None, device: str, instead: str) -> None:
    """Log, once for each of its arguments, that a model computes in emulated half precision.

    Args:
        dtype: that a model computes in; `None` for that of its weights, which is not looked at.
        device: type of the device, such as cpu.
        instead: the setting that makes it float32.
    """
    if device == "cpu" and dtype == torch.bfloat16 and not has_bfloat16():
        logging.getLogger(__name__).warning(
            "this model computes in bfloat16, and this CPU has no instructions for it: expect 6 to "
            "12 times the time of float32. Use %s",
            instead,
        )
