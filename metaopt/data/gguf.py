"""GGUF files, as llama.cpp reads them, as folders that transformers reads."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NEEDED = ("gguf", "accelerate")
DTYPES = ("float32", "bfloat16")
PLACES = ("quantization_config", "_name_or_path", "_model_name_or_path")
"""Entries of a configuration that say how and where its weights were kept."""


def missing_packages() -> list[str]:
    """Return which packages that reading a GGUF file takes are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def convert(file: Path, folder: Path, dtype: str = "float32") -> None:
    """Write the causal language model in a GGUF file as a transformers folder.

    Quantized weights are multiplied out, so that the folder's model computes what llama.cpp
    computes up to rounding. float32 is the default, as a CPU without instructions for bfloat16
    emulates them.

    Args:
        file: of any architecture that transformers reads from GGUF, with its tokenizer.
        folder: is made.
        dtype: of the weights, float32 or bfloat16.

    Raises:
        ValueError: the file is damaged, its architecture is not known, or weights are missing.
        OSError: the folder cannot be written.

    Cost: for 135 million weights 25 CPU seconds and 1.2 GB of memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    packed, tokenizer = _read(file)
    # transformers does not write a model that it has unpacked: its weights are marked as quantized.
    settings = {k: v for k, v in packed.config.to_dict().items() if k not in PLACES}
    config = type(packed.config).from_dict(settings)
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, dtype), trust_remote_code=False
    )
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    model.generation_config = packed.generation_config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None:  # GGUF has it in the configuration only
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(file: Path) -> tuple[Any, Any]:
    """Return the model and the tokenizer in a GGUF file; no code is run.

    transformers reads whatever else is in the file's folder, such as a tokenizer_config.json that
    names code. It is therefore given a folder that holds the file alone.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with TemporaryDirectory() as folder:
            (Path(folder) / file.name).symlink_to(file.absolute())
            how: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(folder, **how)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **how
            )
    except Exception as error:  # whatever a reader meets in the bytes of a damaged file
        raise ValueError(f"{file.name} cannot be read as GGUF by transformers: {error}.") from error
    model, info = loaded
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:5])
        raise ValueError(f"{file.name} lacks weights of its model: {names}.")
    return model, tokenizer
