"""`prismlens probe`: the decodability map of a model as a table of cells, and its gap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from prismlens.cli.output import Json, OnBad, bars, emit, grid, records, text_of
from prismlens.data.load import load_items
from prismlens.decodability import Decodability, decodability
from prismlens.positions import parse
from prismlens.results import check_free
from prismlens.trace import load

ALPHA = 0.05
"""Size of the test that a star stands for."""
MISSING = "raise or drop"
WIDEST = 1000
"""A map is as wide as it has positions; it is not folded, so that columns stay columns."""


def probe(
    model: Annotated[str, typer.Argument(help="a shipped model (tiny/lvr), a local folder, or a hub id")],
    items: Annotated[str, typer.Option(help="shapes, vstar:DIR, mmvp:DIR, or blink:DIR")] = "shapes",
    target: Annotated[
        str, typer.Option(help="answer (the letter), content (the right option), or a column")
    ] = "answer",
    layer: Annotated[list[int] | None, typer.Option(help="a block to read, repeat it; all when left out")] = None,
    role: Annotated[list[str] | None, typer.Option(help="a position to read, repeat it; else the usual ones")] = None,
    protocol: Annotated[str, typer.Option(help="fair, or paper (as published)")] = "fair",
    permutations: Annotated[int, typer.Option(help="shuffles of the labels, for p; 0: none")] = 99,
    controls: Annotated[int, typer.Option(help="control tasks; 0: none")] = 5,
    n: Annotated[int | None, typer.Option(help="items; all of a folder, 200 scenes, when left out")] = None,
    seed: Annotated[int, typer.Option(help="of items, folds, controls, shuffles and intervals")] = 0,
    on_bad: OnBad = "raise",
    on_missing: Annotated[str, typer.Option(help=f"for items without a position others have: {MISSING}")] = "raise",
    on_rare: Annotated[str, typer.Option(help=f"for classes with fewer items than folds: {MISSING}")] = "raise",
    out: Annotated[Path | None, typer.Option(help="a new folder for the rows and the manifest")] = None,
    as_json: Json = False,
) -> None:
    """Read a label off MODEL with linear probes, at every layer and position, beside their controls.

    Decodable is not used: read the map beside `prismlens corrupt`. --json has every column of every cell.

    Example: prismlens probe tiny/lvr --target content --on-rare drop --n 100 --permutations 19
    """
    if out is not None:
        check_free(out.expanduser().resolve())
    chosen = load_items(items, n=n, seed=seed, on_bad=on_bad)
    found = decodability(
        load(model), chosen, target=target, layers=layer, roles=[parse(text) for text in role] if role else None,
        protocol=protocol, n_permutations=permutations, n_controls=controls, seed=seed, on_missing=on_missing,
        on_rare=on_rare, progress=bars(),
    )  # fmt: skip
    saved = None if out is None else str(found.save(out))
    gap = found.gap() if not role else None
    if as_json:
        emit(
            {
                "model": model, "items": len(found.results.manifest["items"]), "target": target, "seed": seed,
                "cells": records(found.frame()), "gap": None if gap is None else records(gap),
                "left_out": found.left_out, "dropped": found.dropped, "saved": saved,
            }
        )  # fmt: skip
        return
    _print(found, gap, model, target)
    if saved:
        typer.echo(f"saved in {saved}")


def _print(found: Decodability, gap: pd.DataFrame | None, model: str, target: str) -> None:
    """The accuracies as layer by role, the lines of the gap that name one number, and who was left out."""
    frame = found.frame()
    first = frame.iloc[0]
    title = f"{model}: {target} read by linear probes, {first.n} items, majority rate {first.majority:.3f}"
    roles = list(dict.fromkeys(frame.role))
    table = grid("site", *roles, title=title)
    for site, line in frame.groupby("site", sort=False):
        cells = line.set_index("role")
        table.add_row(str(site), *(_cell(cells.loc[role]) for role in roles))
    typer.echo(text_of(table, WIDEST))
    typer.echo(f"held-out accuracy, then selectivity over the control tasks; * p < {ALPHA:g}, corrected over the map")
    if gap is not None:
        typer.echo("\ngap: accuracy at answer.source after the final norm, minus that at a latent")
        for line in records(gap.query('reading != "injected"')):
            interval = f"{line['gap']:+.3f} [{line['low']:+.3f}, {line['high']:+.3f}]"
            typer.echo(f"  {line['reading']:6} {line['role']} {line['site']}: {interval}")
    for what, why in found.left_out.items():
        typer.echo(f"{what} is not on the map: {why}")
    if found.dropped:
        typer.echo(f"{len(found.dropped)} items left out: {next(iter(found.dropped.values()))}")


def _cell(line: pd.Series) -> str:
    """Accuracy, a star where it beats chance over the whole map, and selectivity where there are controls."""
    star = "*" if line.p_map < ALPHA else " "
    return f"{line.accuracy:.2f}{star}" + ("" if pd.isna(line.selectivity) else f" {line.selectivity:+.2f}")
