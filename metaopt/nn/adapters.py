"""Folders of models, before a library reads them."""

from __future__ import annotations

from pathlib import Path


def refuse_adapter(source: object) -> None:
    """Raise a `ValueError` for a folder that holds an adapter and no model.

    transformers would load the base that the adapter names, add the adapter and freeze the rest:
    a model whose trained part is elsewhere than its user means.

    Args:
        source: a folder, an id of the hub, or anything else that a model is made of.
    """
    if not isinstance(source, (str, Path)):
        return
    folder = Path(source).expanduser()
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{source} holds a PEFT adapter, not a model. Merge it into its base, and give that "
            f"folder: AutoPeftModel.from_pretrained(ADAPTER).merge_and_unload()"
            f".save_pretrained(FOLDER), with the tokenizer next to it."
        )
