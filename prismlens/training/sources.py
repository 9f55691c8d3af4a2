"""Where training data comes from: rendered scenes, or items with boxes; each makes packs for one model and variant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm.auto import tqdm

from prismlens.data.viscot_row import TrainingRow
from prismlens.errors import ItemError, SettingError
from prismlens.training.batch import Group
from prismlens.training.examples import Example, answer_text, encode_prompt, make_example
from prismlens.training.features import SHARD, FeatureStore, image_key, tower_features, tower_key, tower_pixels
from prismlens.training.item_packs import ItemPacks, plan_packs
from prismlens.training.prepare import Prepared
from prismlens.training.scenes import Pool, ScenePacks, sample_scenes
from prismlens.training.settings import TrainSettings
from prismlens.training.variants import Variant
from prismlens.types import Item


@runtime_checkable
class Source(Protocol):
    """Training data of one kind."""

    @property
    def writes_start(self) -> bool:
        """The model writes the block's start marker itself; otherwise its prompt ends with it."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON values that change with the data."""
        ...

    def packs(self, ready: Prepared, variant: Variant, settings: TrainSettings) -> Any:
        """A map-style data set of packs, in the order of the optimiser steps."""
        ...


@dataclass(frozen=True)
class SceneSource:
    """Rendered scenes of the training split, several questions about each.

    Args:
        count: scenes.
        seed: draws them.
        cache: folder for their merger outputs; without one they are computed in every run.
    """

    count: int = 3000
    seed: int = 1
    cache: Path | None = None
    writes_start: bool = field(default=False, init=False)

    def identity(self) -> dict[str, Any]:
        """What the scenes depend on."""
        return {"kind": "shapes", "count": self.count, "seed": self.seed}

    def packs(self, ready: Prepared, variant: Variant, settings: TrainSettings) -> ScenePacks:
        """One pack a scene."""
        scenes = sample_scenes(self.count, self.seed)
        items = [Item(scene.render(), "-", id=f"{self.seed}-{number}") for number, scene in enumerate(scenes)]
        compute = partial(tower_features, ready.model, ready.plain)
        if self.cache is None:
            parts = [compute(items[i : i + SHARD]) for i in range(0, len(items), SHARD)]
            features = [value for part in parts for value, _ in part]
        else:
            store = FeatureStore(self.cache, tower_key(ready.model, ready.plain))
            keys = [image_key(item) for item in items]
            store.fill(compute, zip(keys, items, strict=True))
            features = [store.read(key)[0] for key in keys]
        return ScenePacks(
            Pool(scenes, features), variant, ready.model.config, ready.plain, ready.slotting,
            variant.batch or settings.batch, settings.seed,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class ItemSource:
    """Items with boxes, or rows of a Visual-CoT file.

    Args:
        rows: `Item`s with options and an answer, or `TrainingRow`s; anything with a length and an index.
        name: what the data is called in the manifest.
        cache: folder for merger outputs, or None to run the tower in every step.
        writes_start: the model writes the start marker itself; needed where rows have text before the latents.
    """

    rows: Sequence[Item] | Sequence[TrainingRow]
    name: str
    cache: Path | None = None
    writes_start: bool = False

    def identity(self) -> dict[str, Any]:
        """The name, the number of rows, and a digest of the ids of all."""
        digest = hashlib.blake2b(digest_size=8)
        for number in range(len(self.rows)):
            digest.update(_item(self.rows[number]).id.encode() + b"\0")
        return {"kind": self.name, "count": len(self.rows), "digest": digest.hexdigest()}

    def packs(self, ready: Prepared, variant: Variant, settings: TrainSettings) -> ItemPacks:
        """Packs under the limits of the settings; every row is read once to know its length."""
        if settings.facts or any(phase.words or phase.mix for phase in variant.phases):
            raise SettingError(
                f"variant {variant.name!r} with facts = {settings.facts}, on items",
                needed="rendered scenes: throw-away heads and mixes of questions need to know what is drawn",
                fix="set facts=0, and choose a variant without words and mixes",
            )
        if variant.batch is not None and variant.batch != settings.batch:
            raise SettingError(
                f"batch = {settings.batch} for {variant.name!r}", needed=f"{variant.batch}, as the variant says"
            )
        maker = GroupMaker(self, ready)
        lengths = maker.prepare()
        limit = min(settings.pack_tokens, ready.model.config.text.max_position_embeddings)
        count = variant.steps * settings.batch
        packs = plan_packs(lengths, count, most_items=settings.pack_items, most_tokens=limit, seed=settings.seed)
        return ItemPacks(maker, packs, variant, settings.batch, settings.seed)


class GroupMaker:
    """Makes the group of a row: its tokens, with its image's features or pixels.

    Args:
        source: the rows.
        ready: what they are made for.
    """

    def __init__(self, source: ItemSource, ready: Prepared) -> None:
        self.source, self.ready = source, ready
        self.store = None if source.cache is None else FeatureStore(source.cache, tower_key(ready.model, ready.plain))
        self._keys: list[str] = []

    def prepare(self) -> np.ndarray:
        """Fill the store and return the number of columns that each row needs."""
        if self.store is not None:
            self.store.fill(partial(tower_features, self.ready.model, self.ready.plain), self._keyed())
        count = len(self.source.rows)
        lengths = [len(self._group(i, pixels=False)) for i in tqdm(range(count), desc="lengths")]
        return np.array(lengths, dtype=np.int64)

    def _keyed(self) -> Iterator[tuple[str, Item]]:
        """Every row's item with the key of its image, one at a time: the rows may not fit into memory together."""
        for number in range(len(self.source.rows)):
            item = _item(self.source.rows[number])
            self._keys.append(image_key(item))
            yield self._keys[-1], item

    def __call__(self, number: int) -> Group:
        """The group of a row, by its number."""
        return self._group(number, pixels=True)

    def _group(self, number: int, *, pixels: bool) -> Group:
        row = self.source.rows[number]
        item = _item(row)
        if self.store is not None:
            features, grid = self.store.read(self._keys[number])
            prefix, example = self._example(row, item, grid)
            return Group(prefix, (example,), grid, features)
        values, grid_thw, (grid,) = tower_pixels(self.ready.plain, [item])
        prefix, example = self._example(row, item, grid)
        return Group(prefix, (example,), grid, None, values if pixels else None, grid_thw[0])

    def _example(
        self, row: Item | TrainingRow, item: Item, grid: tuple[int, int]
    ) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], Example]:
        before, after = _texts(row)
        if before and not self.source.writes_start and self.ready.slotting.stages:
            raise ItemError(
                f"item {item.id!r} has text before its latents: {before[:40]!r}",
                needed="latents first, where the prompt ends with the start marker",
                fix="train with writes_start=True, so that the model learns to open the block itself",
            )
        prefix, prompt = encode_prompt(self.ready.plain, item, grid[0] * grid[1])
        example = make_example(
            self.ready.model.config, self.ready.plain, item, prompt, grid, self.ready.slotting, answer=after,
            before=before, writes_start=self.source.writes_start,
        )  # fmt: skip
        return (prefix.ids, prefix.segments), example


def _item(row: Item | TrainingRow) -> Item:
    return row if isinstance(row, Item) else row.item


def _texts(row: Item | TrainingRow) -> tuple[str, str]:
    """What is written before and after the latents.

    Raises:
        ItemError: an item without a known answer, or a row with text between the latents of two boxes.
    """
    if isinstance(row, Item):
        if row.answer is None:
            raise ItemError(f"item {row.id!r} has no answer", needed="an answer to train on")
        return "", answer_text(row)
    between = [piece for piece in row.pieces[1:-1] if piece.strip()]
    if between:
        raise ItemError(
            f"item {row.item.id!r} (line {row.line}) has text between its latents: {between[0][:40]!r}",
            needed="the latents of all boxes in one block",
            fix="leave such rows out",
        )
    return row.answer_before.strip(), row.answer_after
