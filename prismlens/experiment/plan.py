"""How a sweep is cut into batches: a function of items, conditions and memory, fixed before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from prismlens.data.images import image_size
from prismlens.errors import SettingError
from prismlens.models.latent import LatentModel
from prismlens.models.processor import LVRProcessor
from prismlens.trace import PrismModel
from prismlens.types import Item

CACHE_BYTES = 2 * 2**30
"""What the keys and values of one decode batch may take, and again what prefixes kept between passes may take."""
MAX_ROWS = 128
"""Beyond this, more rows in one batch gain nothing on a CPU, and little where weights are read once a batch."""


@dataclass(frozen=True)
class Plan:
    """The batches of a sweep. Float results depend on them in their last bits.

    A unit is some consecutive items. Their prompts run in one batch; what follows them is decoded in batches that hold
    the unit's items `slots` times in a row, one condition a slot, item i always in row i of its slot.

    Args:
        n_items: items in all.
        unit_items: items in a unit (fewer in the last).
        slots: conditions decoded together.
        width: columns of the longest sequence there can be, 0 where the number of rows was given.
        bytes_per_row: of keys and values at that width.
    """

    n_items: int
    unit_items: int
    slots: int
    width: int
    bytes_per_row: int

    @property
    def rows(self) -> int:
        """Rows of a decode batch."""
        return self.unit_items * self.slots

    @property
    def units(self) -> tuple[slice, ...]:
        """The items of every unit."""
        starts = range(0, self.n_items, self.unit_items)
        return tuple(slice(start, min(start + self.unit_items, self.n_items)) for start in starts)

    def manifest(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {**asdict(self), "rows": self.rows, "cache_bytes": CACHE_BYTES}


def make_plan(model: PrismModel, items: Sequence[Item], n_variants: int, batch_rows: int | None) -> Plan:
    """The plan that fits into memory: at most `CACHE_BYTES` of keys and values in one decode batch.

    Args:
        model: its `batch_size` bounds a unit.
        items: all of them.
        n_variants: how many conditions there are, each seed counted.
        batch_rows: rows of a decode batch, where memory is not to decide.

    Raises:
        SettingError: `batch_rows` is not a whole number of at least 1.
    """
    if batch_rows is not None and (type(batch_rows) is not int or batch_rows < 1):
        raise SettingError(f"batch_rows={batch_rows!r}", needed="a whole number, at least 1, or None")
    width = longest(model, items) if batch_rows is None else 0
    per_row = cache_bytes(model.hf, width)
    rows = batch_rows or max(1, min(MAX_ROWS, CACHE_BYTES // per_row))
    unit = min(model.batch_size, rows, len(items))
    most = max(1, min(rows // unit, n_variants))
    batches = -(-n_variants // most)
    return Plan(len(items), unit, -(-n_variants // batches), width, per_row)


def cache_bytes(hf: LatentModel, width: int) -> int:
    """Bytes of one row's keys and values: layers x key-value heads x head size x columns x 2 x bytes a number."""
    text = hf.config.text
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = text.num_key_value_heads or text.num_attention_heads
    return text.num_hidden_layers * heads * head * width * 2 * hf.dtype.itemsize


def longest(model: PrismModel, items: Sequence[Item]) -> int:
    """Columns of the longest sequence there can be: prompt, latents, forced ids, markers and text."""
    settings = model.settings()
    stages = settings.stages_of(model.hf.config)
    block = settings.latent_steps + sum(len(stage.close) + 1 for stage in stages)
    prompts = (len(model.processor.encode(item, image_tokens(model.processor, item)).ids) for item in items)
    return max(prompts) + block + settings.max_new_tokens + 1


def image_tokens(processor: LVRProcessor, item: Item) -> int:
    """How many tokens an item's image takes, from its size alone."""
    width, height = item.image.size if isinstance(item.image, Image.Image) else image_size(item.image, item.id)
    patches = processor.image_processor.get_number_of_image_patches(height, width)
    return patches // processor.image_processor.merge_size**2
