"""A table of what sits at every position of one row; knows no roles beyond the segments."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import pandas as pd

from prismlens.errors import RoleError
from prismlens.unrolled import Segment, Unrolled


@runtime_checkable
class Decoder(Protocol):
    """What a tokenizer needs for the table: ids to text."""

    def decode(self, token_ids: list[int]) -> str:
        """The text of some token ids."""
        ...


def describe(unrolled: Unrolled, row: int, tokenizer: Decoder | None = None) -> pd.DataFrame:
    """One line a position of one row, padding left out.

    Args:
        unrolled: the batch.
        row: which row, negative from the end.
        tokenizer: gives the column ``token`` its texts; None without one.

    Returns:
        Columns ``column``, ``token_id``, ``token``, ``role`` (the segment), ``step`` (of the latent), ``stage`` (its
        name, of latents and free tokens; empty elsewhere), ``patch_row`` and ``patch_column`` (of the image token in
        the merged grid), ``t``, ``h``, ``w`` (M-RoPE ids). Steps and patches are -1 where there is none. At latents
        the token is the slot token, though a vector was fed in its place.

    Raises:
        RoleError: there is no such row.
    """
    batch, _ = unrolled.shape
    if not -batch <= row < batch:
        raise RoleError(f"row {row} of a batch of {batch}", needed=f"a row from {-batch} to {batch - 1}")
    columns = unrolled.valid[row].nonzero().flatten()
    ids = unrolled.input_ids[row, columns].tolist()
    patch_rows, patch_columns = unrolled.patches[row, columns].unbind(-1)
    temporal, height, width = unrolled.position_ids[:, row, columns]
    return pd.DataFrame(
        {
            "column": columns.tolist(),
            "token_id": ids,
            "token": [None if tokenizer is None else tokenizer.decode([token]) for token in ids],
            "role": [Segment(value).name.lower() for value in unrolled.segments[row, columns].tolist()],
            "step": unrolled.steps[row, columns].tolist(),
            "stage": [unrolled.stage_names[i] if i >= 0 else "" for i in unrolled.stages[row, columns].tolist()],
            "patch_row": patch_rows.tolist(),
            "patch_column": patch_columns.tolist(),
            "t": temporal.tolist(),
            "h": height.tolist(),
            "w": width.tolist(),
        }
    )
