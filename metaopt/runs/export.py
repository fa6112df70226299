"""The learned outer variable and the trained inner level as files that other programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metaopt.engine.gradient_problem import GradientState
from metaopt.files.writing import replacing, write_text

FILES = ("outer.safetensors", "outer.txt", "outer.json", "inner.safetensors")
"""What `export` may write."""


def export(outer: Any, inner: Any, folder: Path) -> None:
    """Write `outer` and `inner` into a folder in the forms that fit them.

    `outer.safetensors` holds named tensors (or one, called outer), `outer.txt` a text and
    `outer.json` numbers, choices and lists of them. `inner.safetensors` holds the parameters and
    buffers of a gradient problem by name: `module.load_state_dict(load_file(path), strict=False)`.
    Frozen weights are not among them; they come from their source. What has no such form is in
    `final.pt` alone.
    """
    if isinstance(outer, Tensor):
        outer = {"outer": outer}
    if isinstance(outer, str):
        write_text(folder / "outer.txt", outer)
    elif isinstance(outer, dict) and outer and _all_tensors(outer):
        _write_tensors(folder / "outer.safetensors", outer)
    elif (text := _json(outer)) is not None:
        write_text(folder / "outer.json", text + "\n")
    if isinstance(inner, GradientState):
        _write_tensors(folder / "inner.safetensors", inner.params | inner.buffers)


def _all_tensors(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    # Cloned because safetensors refuses tensors that share memory, as views of one buffer do.
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as file:
        file.write(save(plain, {"format": "pt"}))


def _json(value: Any) -> str | None:
    try:
        return json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError):
        return None
