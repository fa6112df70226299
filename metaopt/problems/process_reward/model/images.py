"""Images of questions as patches for models like Qwen2-VL, read when a batch needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from metaopt.engine.ranges import check_ranges


class Vision:
    """How a model of the Qwen2-VL family reads images.

    Args:
        config: of the model, with a vision_config and the ids of the tokens around an image.
        source: folder or id of the hub whose image processor is taken; `None` for one of the sizes
            in `config`.
        longest: pixels of the longer side above which an image is shrunk, >= 1; DreamPRM: 512.

    Raises:
        ValueError: longest below 1.
    """

    def __init__(
        self, config: PretrainedConfig, source: str | Path | None, longest: int = 512
    ) -> None:
        self.longest = longest
        check_ranges(self, "longest >= 1")
        ids: Any = config
        self.tokens = (ids.vision_start_token_id, ids.image_token_id, ids.vision_end_token_id)
        self.merge = ids.vision_config.spatial_merge_size
        if source is not None:
            self.processor = Qwen2VLImageProcessorPil.from_pretrained(source)
        else:
            self.processor = Qwen2VLImageProcessorPil(
                patch_size=ids.vision_config.patch_size,
                temporal_patch_size=ids.vision_config.temporal_patch_size,
                merge_size=self.merge,
            )

    def images(self, chains: Sequence[Any]) -> tuple[Images, list[list[int]], list[list[int]]]:
        """Return the chains' distinct images, and of each chain their rows and their tokens.

        Raises:
            FileNotFoundError: an image is not there.
        """
        rows: dict[str, int] = {}
        pictures = [[rows.setdefault(path, len(rows)) for path in c.images] for c in chains]
        images = Images(self, tuple(rows))
        start, pad, end = self.tokens
        tokens = [[start, *[pad] * images.tokens(row), end] for row in range(len(rows))]
        return images, pictures, [[t for row in chain for t in tokens[row]] for chain in pictures]

    def inputs(self, ids: Tensor, images: Images | None, pictures: Tensor) -> dict[str, Tensor]:
        """Return what the model takes in addition to the token ids (B, T) of images (B, I)."""
        if images is None or not bool((pictures >= 0).any()):
            return {}
        return {
            **images.pixels(pictures[pictures >= 0].tolist(), ids.device),
            "mm_token_type_ids": (ids == self.tokens[1]).int(),
        }


class Images:
    """Distinct images; the 256 used last are kept as patches.

    Args:
        vision: how the model reads them.
        paths: where they are.

    Raises:
        FileNotFoundError: an image is not there.
    """

    def __init__(self, vision: Vision, paths: Sequence[str]) -> None:
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(paths)} images are not there: {', '.join(missing[:3])}; "
                "paths are relative to the working directory."
            )
        self.vision, self.paths = vision, tuple(paths)
        self._patches = lru_cache(maxsize=256)(self._read)

    def tokens(self, row: int) -> int:
        """Return how many tokens image `row` becomes."""
        with Image.open(self.paths[row]) as image:
            width, height = _shrunk(image.size, self.vision.longest)
        patches = self.vision.processor.get_number_of_image_patches(height, width)
        result: int = int(patches) // self.vision.merge**2
        return result

    def pixels(self, rows: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Return pixel_values (patches, values) and image_grid_thw (len(rows), 3)."""
        patches = [self._patches(row) for row in rows]
        return {k: torch.cat([p[k] for p in patches]).to(device) for k in patches[0]}

    def _read(self, row: int) -> Mapping[str, Tensor]:
        with Image.open(self.paths[row]) as image:
            shape = _shrunk(image.size, self.vision.longest)
            resized = image.convert("RGB").resize(shape, Image.Resampling.LANCZOS)
        batch = self.vision.processor(images=[resized], return_tensors="pt")
        return {k: batch[k] for k in ("pixel_values", "image_grid_thw")}


def _shrunk(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return width and height with the longer side at most `longest`."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
