"""`prismlens compare`: several models on the same items, their tables, and correlations across them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from prismlens.cli.output import Json, bars, emit, records
from prismlens.compare import compare as run_compare
from prismlens.data.load import load_items
from prismlens.errors import SettingError
from prismlens.models.checkpoint import zoo_names
from prismlens.results import check_free

COMPARISON, REPORTS = "comparison", "reports"
"""Folders in the one that --out names."""


def compare(
    models: Annotated[list[str], typer.Argument(help="shipped models (also patterns, 'tiny/*'), folders, hub ids")],
    items: Annotated[str, typer.Option(help="shapes, vstar:DIR, mmvp:DIR, or blink:DIR")] = "shapes",
    n: Annotated[int | None, typer.Option(help="items; all of a folder, 200 scenes, when left out")] = None,
    seed: Annotated[int, typer.Option(help="of items, noise, donors, folds and intervals")] = 0,
    seeds: Annotated[int, typer.Option(help="measure every model under so many seeds, from --seed on")] = 1,
    layer: Annotated[list[int] | None, typer.Option(help="a block of the maps, repeat it; all when left out")] = None,
    on_bad: Annotated[str, typer.Option(help="for a model that fails: raise, or skip it and name it")] = "raise",
    out: Annotated[
        Path | None, typer.Option(help="a folder for reports and rows; a stopped comparison goes on from it")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="a page of the comparison, which opens offline")] = None,
    as_json: Json = False,
) -> None:
    """Put MODELS side by side on the same items: accuracy, cosines, gaps, what breaking latents changes, correlations.

    A saved report's folder may stand for a model. Several minutes for several models; --out keeps what is done.

    Example: prismlens compare tiny/lvr tiny/n-lvr tiny/bottleneck --n 200 --out runs/three --html three.html
    """
    names = expanded(models)
    if out is not None:
        check_free((out / COMPARISON).expanduser().resolve())
    found = run_compare(
        {name: name for name in names}, load_items(items, n=n, seed=seed), seeds=range(seed, seed + seeds),
        layers=layer, reports=None if out is None else out / REPORTS, on_bad=on_bad, progress=bars(),
    )  # fmt: skip
    saved = None if out is None else str(found.save(out / COMPARISON))
    page = None if html is None else str(found.to_html(html))
    if as_json:
        emit(
            {
                "models": records(found.frame()), "correlations": records(found.correlations()),
                "items": len(found.manifest["items"]), "seeds": found.manifest["seeds"],
                "majority": found.manifest["majority"], "failed": found.failed, "saved": saved, "page": page,
            }
        )  # fmt: skip
        return
    typer.echo(found.table())
    for what, path in (("saved in", saved), ("page:", page)):
        if path:
            typer.echo(f"{what} {path}")


def expanded(names: Sequence[str]) -> list[str]:
    """The names with patterns replaced by the shipped models that they match, each once.

    Raises:
        SettingError: a pattern matches none.
    """
    out: list[str] = []
    for name in names:
        matched = [one for one in zoo_names() if fnmatchcase(one, name)] if set(name) & set("*?[") else [name]
        if not matched:
            raise SettingError(f"no shipped model is called {name!r}", needed=f"one of {', '.join(zoo_names())}")
        out += matched
    return list(dict.fromkeys(out))
