"""Half precision where the CPU emulates it is said once."""

from __future__ import annotations

import logging

import pytest
import torch

from metaopt.nn import precision


@pytest.mark.parametrize(
    ("dtype", "device", "fast", "said"),
    [
        (torch.bfloat16, "cpu", False, 1),
        (torch.bfloat16, "cpu", True, 0),
        (torch.bfloat16, "cuda", False, 0),
        (torch.float32, "cpu", False, 0),
        (None, "cpu", False, 0),
    ],
)
def test_bfloat16_is_named_as_slow_once(monkeypatch, caplog, dtype, device, fast, said):
    monkeypatch.setattr(precision, "has_bfloat16", lambda: fast)
    precision.say_if_slow.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            precision.say_if_slow(dtype, device, "dtype=float32")
    precision.say_if_slow.cache_clear()
    assert len(caplog.records) == said
    assert all(
        "6 to 12 times" in r.message and "dtype=float32" in r.message for r in caplog.records
    )


def test_the_flags_of_a_processor_are_read(monkeypatch):
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    for flags in ((False, False), (True, False), (False, True)):
        for name, value in zip(("avx512_bf16", "amx_tile"), flags, strict=True):
            monkeypatch.setattr(
                torch.cpu, f"_is_{name}_supported", lambda v=value: v, raising=False
            )
        assert precision.has_bfloat16() is any(flags)
    monkeypatch.setattr(precision.platform, "machine", lambda: "arm64")
    assert precision.has_bfloat16()
