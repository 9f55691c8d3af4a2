"""Merger outputs kept on disk: the frozen tower sees every image once; knows no questions and no training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from prismlens.data.images import open_image
from prismlens.errors import ItemError
from prismlens.models.lvr import LVRForConditionalGeneration
from prismlens.models.processor import LVRProcessor
from prismlens.models.weights import digest_of
from prismlens.types import Item

SHARD = 64
"""Images a file."""
INDEX = "index.json"

Grid = tuple[int, int]


def tower_key(model: LVRForConditionalGeneration, processor: LVRProcessor) -> str:
    """Sixteen hex digits that change with any weight of the tower and with any setting of the image processor."""
    digest = digest_of(sorted(model.model.visual.state_dict().items()))
    digest.update(processor.image_processor.to_json_string().encode())
    return digest.hexdigest()


def image_key(item: Item) -> str:
    """Thirty-two hex digits of an image: of the file's bytes, or of the pixels where it is in memory.

    Raises:
        ItemError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(item.image, Image.Image):
        # As the tower sees it: a palette, an orientation or transparency stand beside the pixels, not in them.
        seen = open_image(item.image, item.id)
        digest.update(f"{seen.mode} {seen.size}".encode())
        digest.update(seen.tobytes())
    else:
        try:
            digest.update(item.image.read_bytes())
        except OSError as error:
            raise ItemError(
                f"the image {str(item.image)!r} of item {item.id!r} cannot be read: {error.strerror}",
                needed="an image file",
            ) from error
    return digest.hexdigest()


class FeatureStore:
    """Merger outputs by image, in files of `SHARD` images; what was computed before an interruption is kept.

    Args:
        folder: receives one subfolder for each tower, so that features of different towers are never mixed.
        key: of the tower, see `tower_key`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / key
        self.folder.mkdir(parents=True, exist_ok=True)
        self._index = self._written()
        self._open = lru_cache(maxsize=8)(lambda shard: safe_open(self._file(shard), "pt"))

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def read(self, key: str) -> tuple[Float[Tensor, "image_token d_model"], Grid]:
        """The features of one image and its grid of tokens."""
        shard, rows, columns = self._index[key]
        return self._open(shard).get_tensor(key), (rows, columns)

    def fill(
        self,
        compute: Callable[[Sequence[Item]], Sequence[tuple[Tensor, Grid]]],
        items: Iterable[tuple[str, Item]],
        *,
        progress: bool = True,
    ) -> None:
        """Compute what is missing, a file at a time; each file is there whole or not at all.

        Args:
            compute: features and grids of some items.
            items: keys with their items.
            progress: show a bar.
        """
        waiting: dict[str, Item] = {}
        for key, item in tqdm(items, desc="image features", disable=not progress):
            if key not in self and key not in waiting:
                waiting[key] = item
            if len(waiting) == SHARD:
                self._write(waiting, compute(list(waiting.values())))
                waiting = {}
        if waiting:
            self._write(waiting, compute(list(waiting.values())))

    def _written(self) -> dict[str, list[int]]:
        """Shard, rows and columns of every image that the folder knows now."""
        path = self.folder / INDEX
        return json.loads(path.read_text()) if path.exists() else {}

    def _file(self, shard: int) -> Path:
        return self.folder / f"features-{shard:06d}.safetensors"

    def _write(self, items: dict[str, Item], computed: Sequence[tuple[Tensor, Grid]]) -> None:
        """One more file, then the index that knows of it; another run may have added files since the last."""
        self._index = self._written() | self._index
        shard = 1 + max((entry[0] for entry in self._index.values()), default=-1)
        draft = self._file(shard).with_suffix(f".draft-{os.getpid()}")
        save_file({key: value.contiguous() for key, (value, _) in zip(items, computed, strict=True)}, draft)
        os.replace(draft, self._file(shard))
        self._index |= {key: [shard, *grid] for key, (_, grid) in zip(items, computed, strict=True)}
        draft = (self.folder / INDEX).with_suffix(f".draft-{os.getpid()}")
        draft.write_text(json.dumps(self._index))
        os.replace(draft, self.folder / INDEX)


def tower_pixels(
    processor: LVRProcessor, items: Sequence[Item]
) -> tuple[Float[Tensor, "patch pixel"], Int[Tensor, "image 3"], list[Grid]]:
    """What the tower takes for some items' images, their grids of patches, and their grids of image tokens."""
    pixels = processor.image_processor(images=[open_image(item.image, item.id) for item in items], return_tensors="pt")
    grid_thw = pixels["image_grid_thw"]
    grids = [(int(h), int(w)) for h, w in (grid_thw[:, 1:] // processor.image_processor.merge_size).tolist()]
    return pixels["pixel_values"], grid_thw, grids


@torch.no_grad()
def tower_features(
    model: LVRForConditionalGeneration, processor: LVRProcessor, items: Sequence[Item]
) -> list[tuple[Float[Tensor, "image_token d_model"], Grid]]:
    """Features and grids of some items' images, in one batch, on the CPU."""
    pixels, grid_thw, grids = tower_pixels(processor, items)
    features = model.image_features(pixels.to(model.device), grid_thw.to(model.device))
    assert features is not None
    parts = features.cpu().split([rows * columns for rows, columns in grids])
    return [(part.clone(), grid) for part, grid in zip(parts, grids, strict=True)]
