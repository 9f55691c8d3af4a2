"""`prismlens corrupt`: operations named on the command line, each a condition of one corruption test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from prismlens.cli.operations import NAMES, check_scale, operation
from prismlens.cli.output import Json, OnBad, bars, emit, records
from prismlens.corruption import corruption_test
from prismlens.data.load import load_items
from prismlens.errors import SettingError
from prismlens.interventions import Edit
from prismlens.positions import parse
from prismlens.results import check_free
from prismlens.sites import LATENT
from prismlens.table import render
from prismlens.trace import load


def corrupt(
    model: Annotated[str, typer.Argument(help="a shipped model (tiny/lvr), a local folder, or a hub id")],
    op: Annotated[
        list[str], typer.Option(help=f"{', '.join(NAMES)}; or NAME:FIELD=VALUE,...; repeat it for several")
    ] = ["zero"],  # noqa: B006  (typer copies it)
    site: Annotated[str, typer.Option(help="where in the network, a hook name")] = LATENT,
    positions: Annotated[
        str, typer.Option(help="where in the sequence: latent, latent[-1], image.box, ...")
    ] = "latent",
    mode: Annotated[str, typer.Option(help="free (later latents are recomputed) or held (they stay)")] = "free",
    scale: Annotated[float | None, typer.Option(help="strength of noise (in its unit) or factor of scale")] = None,
    items: Annotated[str, typer.Option(help="shapes, vstar:DIR, mmvp:DIR, or blink:DIR")] = "shapes",
    n: Annotated[int | None, typer.Option(help="items; all of a folder, 200 scenes, when left out")] = None,
    seed: Annotated[int, typer.Option(help="of items, noise, donors and intervals")] = 0,
    on_bad: OnBad = "raise",
    out: Annotated[Path | None, typer.Option(help="a new folder for the rows and the manifest")] = None,
    as_json: Json = False,
) -> None:
    """Break MODEL by operations of your choice and compare with the clean run, item by item.

    Items that an operation cannot be applied to (no donor, no such position) are counted and named below the table.

    Example: prismlens corrupt tiny/lvr --op zero --op noise:sigma=3 --positions "latent[-1]" --n 50
    """
    if len(set(op)) < len(op):
        raise SettingError(f"--op {' --op '.join(op)}", needed="every operation once")
    check_scale(op, scale)
    where = parse(positions)
    conditions = {
        name: (Edit(operation(name, scale), positions=where, site=site, mode=cast(Literal["free"], mode), seed=seed),)
        for name in op
    }
    if out is not None:
        check_free(out.expanduser().resolve())
    chosen = load_items(items, n=n, seed=seed, on_bad=on_bad)
    test = corruption_test(load(model), chosen, conditions=conditions, seed=seed, on_missing="drop", progress=bars())
    saved = None if out is None else str(test.save(out))
    if as_json:
        emit(
            {
                "model": model, "items": len(chosen), "majority": test.majority.rate, "seed": seed,
                "edits": {name: [str(edit) for edit in test.edits(name)] for name in op},
                "conditions": records(test.frame()), "left_out": test.left_out, "saved": saved,
            }
        )  # fmt: skip
        return
    title = f"{model}: {len(chosen)} items, majority rate {test.majority.rate:.3f}"
    typer.echo(render(test.frame(), title, test.left_out))
    for name in op:
        typer.echo(f"{name}: {', '.join(map(str, test.edits(name)))}")
    if saved:
        typer.echo(f"saved in {saved}")
