"""The command line: turns words into calls of the library and prints what they return; computes nothing itself."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prismlens.cli.ask import ask
from prismlens.cli.compare import compare
from prismlens.cli.corrupt import corrupt
from prismlens.cli.doctor import doctor
from prismlens.cli.output import Json, OnBad, bars, emit, records, silence
from prismlens.cli.probe import probe
from prismlens.cli.training import convert, train
from prismlens.cli.zoo import zoo
from prismlens.data.load import DEFAULT_SHAPES, load_items
from prismlens.demo import demo as run_demo
from prismlens.errors import PrismlensError
from prismlens.prism import prism as run_prism
from prismlens.results import check_free
from prismlens.trace import load

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Does a vision-language model that thinks in latents use its latents?",
    epilog="Exit status: 0 done; 1 an error, explained on standard error, or a fault that doctor found; 2 an option or "
    "argument that does not exist; 130 interrupted. Shell completion: prismlens --install-completion.",
)

Model = Annotated[str, typer.Argument(help="a shipped model (tiny/lvr), a local folder, or a hub id")]


def main() -> None:
    """The entry point: a prismlens error is printed without a traceback and ends the program with status 1."""
    warnings.showwarning = _plain_warning
    silence()
    try:
        app(prog_name="prismlens")
    except PrismlensError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def _plain_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, without the line of code that it came from."""
    typer.echo(f"warning: {message}", err=True)


@app.command()
def prism(
    model: Model,
    items: Annotated[str, typer.Option(help="shapes, vstar:DIR, mmvp:DIR, or blink:DIR")] = "shapes",
    n: Annotated[int | None, typer.Option(help="items; all of a folder, 200 scenes, when left out")] = None,
    seed: Annotated[int, typer.Option(help="of items, noise, donors and intervals")] = 0,
    on_bad: OnBad = "raise",
    out: Annotated[Path | None, typer.Option(help="a new folder for the rows and the manifest")] = None,
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option(help="a page of the report, which opens offline")] = None,
) -> None:
    """Break the latents of MODEL in several ways and say whether its answers need them.

    Example: prismlens prism tiny/lvr --n 200 --out runs/lvr --html lvr.html
    """
    if out is not None:
        check_free(out.expanduser().resolve())
    chosen = load_items(items, n=n, seed=seed, on_bad=on_bad)
    report = run_prism(load(model), chosen, seed=seed, progress=bars())
    saved = None if out is None else str(report.save(out))
    page = None if html is None else str(report.to_html(html))
    if as_json:
        emit(
            {
                "model": model, "items": len(chosen), "majority": report.corruption.majority.rate, "seed": seed,
                "verdict": asdict(report.verdict), "conditions": records(report.corruption.frame()),
                "left_out": report.corruption.left_out, "missing": dict(report.missing), "saved": saved,
                "page": page,
            }
        )  # fmt: skip
        return
    typer.echo(report.table())
    typer.echo(str(report.verdict))
    if saved:
        typer.echo(f"saved in {saved}")
    if page:
        typer.echo(f"page: {page}")


app.command()(compare)
app.command()(corrupt)
app.command()(probe)
app.command()(ask)
app.command()(train)
app.command()(convert)
app.command()(zoo)
app.command()(doctor)


@app.command()
def demo(n: Annotated[int, typer.Option(help="held-out items for each model")] = DEFAULT_SHAPES) -> None:
    """Ask four models, three of them of known mechanism, and print each verdict beside the construction.

    Example: prismlens demo --n 100
    """
    run_demo(n, echo=typer.echo, progress=bars())
