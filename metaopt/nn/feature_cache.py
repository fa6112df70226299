"""Features of a frozen model on disk, by what they are of and what made them.

<folder>/<hash of what made them>/made_by.json
<folder>/<hash of what made them>/<hash of the content>.safetensors     256 items each
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from metaopt.files.errors import FolderInUseError
from metaopt.files.lock import locked
from metaopt.files.writing import replacing, write_json

FORMAT = 1
"""Of features that are kept. Raise it when the features of an item change."""

SHARD = 256
"""Items of a file, and the most that a kill makes a program compute again."""

POLL = 0.2
"""Seconds between two looks at a folder that another process computes features for."""

PLACES = ("name_or_path", "_name_or_path", "is_local", "local_files_only")
"""Entries of configurations that say where a model was read from."""

OF_A_CALL = (
    "max_length", "padding_side", "pad_to_multiple_of", "pad_token_type_id", "stride",
    "truncation_side", "truncation_strategy",
)  # fmt: skip
"""Entries of a tokenizer's configuration that say how a text is cut and padded, not split."""

Item = Sequence[str]
Compute = Callable[[Sequence[Any]], Sequence[Tensor]]


class FeatureCache:
    """x(item), read from disk where it is there, and computed, rounded to float16 and written else.

    What is returned is rounded in both cases, so that a second run gets the bits of the first one.
    A file that is not what was written is named in a warning and computed again. Processes that
    need the same features at once compute them in turns, each item once.

    Args:
        folder: for the features of all models; it is made.
        made_by: all that features depend on but the item: the model's `fingerprint`, and how an
            item is read, as JSON has it.

    Example:
        >>> import tempfile
        >>> cache = FeatureCache(tempfile.mkdtemp(), {"model": "length"})
        >>> length = lambda items: [torch.tensor([float(len(text))]) for (text,) in items]
        >>> cache([("a",), ("four",)], length)
        [tensor([1.]), tensor([4.])]
    """

    def __init__(self, folder: str | Path, made_by: Mapping[str, Any]) -> None:
        self.made_by = {"format": FORMAT, **made_by}
        name = _digest(json.dumps(self.made_by, sort_keys=True))
        self.folder = Path(folder).expanduser() / name
        self._keys: dict[Path, set[str]] = {}

    def __call__(self, items: Sequence[Item], compute: Compute) -> list[Tensor]:
        """Return the features of each item, float32, of the shapes that `compute` gives.

        Args:
            items: texts that an item is made of; equal ones are computed once.
            compute: from items that are missing, at most 256 at a time and in their order, to their
                features on any device.

        Raises:
            ValueError: features are not finite, or beyond float16's 65,504; nothing of their file
                is written.
            OSError: the folder cannot be written to.
        """
        keys = [_digest(json.dumps(list(item))) for item in items]
        rows = self._read(set(keys))
        missing = {k: item for k, item in zip(keys, items, strict=True) if k not in rows}
        while missing:
            with self._turn():
                rows |= self._read(set(missing))  # by another process, in the meantime
                todo = [k for k in missing if k not in rows][:SHARD]
                if todo:
                    features = compute([missing[k] for k in todo])
                    rows |= self._write(dict(zip(todo, features, strict=True)))
            missing = {k: item for k, item in missing.items() if k not in rows}
        return [rows[k].float() for k in keys]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other process computes features of this folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        said = False
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(self.folder))
                    break
                except FolderInUseError:
                    if not said:
                        print(f"waiting for the features that another process writes to "
                              f"{self.folder}", file=sys.stderr)  # fmt: skip
                    said = True
                    time.sleep(POLL)
            yield

    def _read(self, wanted: set[str]) -> dict[str, Tensor]:
        """Return the features that are there, of the wanted keys."""
        rows: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                if path not in self._keys:
                    with safe_open(path, "pt") as file:  # its header alone
                        self._keys[path] = set(file.keys())
                if self._keys[path] & (wanted - rows.keys()):
                    content = path.read_bytes()
                    if _digest(content) != path.stem:
                        raise SafetensorError("its name is not the hash of its content")
                    rows |= {k: v for k, v in load(content).items() if k in wanted}
            except FileNotFoundError:  # another process has removed a damaged one
                continue
            except SafetensorError as error:
                warnings.warn(f"{path} is damaged ({error}); it is removed, and its features are "
                              f"computed again.", stacklevel=3)  # fmt: skip
                path.unlink(missing_ok=True)
        return rows

    def _write(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rounded = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in features.items()}
        bad = sum(not bool(v.isfinite().all()) for v in rounded.values())
        if bad:
            raise ValueError(
                f"the features of {bad} of {len(rounded)} items are not finite in float16, which "
                f"ends at 65504: read another layer, or set cache=null to keep them in float32."
            )
        content = save(rounded)
        made_by = self.folder / "made_by.json"
        if not made_by.exists():
            write_json(made_by, self.made_by)
        with replacing(self.folder / f"{_digest(content)}.safetensors") as file:
            file.write(content)
        return rounded


def fingerprint(model: torch.nn.Module, tokenizer: Any) -> str:
    """Return a hash of a transformers model and its tokenizer, whatever folder they are read from.

    It depends on weights and their precision, configuration, vocabulary, and how texts are split.

    Cost: about a second for each gigabyte of weights.
    """
    config: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr, operator]
    digest = sha256(_settings({**config, "transformers_version": None}))
    digest.update(type(model).__name__.encode())
    _add_weights(digest, model)
    words = copy.deepcopy(tokenizer)
    backend = getattr(words, "backend_tokenizer", None)
    if backend is not None:  # every call sets its own; a file may hold those of another program
        backend.no_truncation()
        backend.no_padding()
    with TemporaryDirectory() as folder:
        words.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                if path.name == "tokenizer_config.json":
                    values = json.loads(content)
                    content = _settings({k: v for k, v in values.items() if k not in OF_A_CALL})
                digest.update(path.name.encode() + content)
    return digest.hexdigest()


def content_hash(model: torch.nn.Module, tokenizer: Any) -> str:
    """Return a hash of a model's weights, with their precision, and of the vocabulary alone.

    Unlike `fingerprint` it does not depend on how a version of transformers writes configurations.
    """
    digest = sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    _add_weights(digest, model)
    return digest.hexdigest()


def _add_weights(digest: Any, model: torch.nn.Module) -> None:
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _settings(values: Mapping[str, Any]) -> bytes:
    portable = {k: v for k, v in values.items() if k not in PLACES}
    return json.dumps(portable, sort_keys=True, default=str).encode()


def _digest(content: str | bytes) -> str:
    return sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:32]
