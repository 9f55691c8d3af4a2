"""The command line: turns words into calls of the library and prints what they return; computes nothing itself."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from prismlens.cli.training import build_zoo, convert, train
from prismlens.data.load import DEFAULT_SHAPES, load_items
from prismlens.demo import demo as run_demo
from prismlens.errors import PrismlensError, SettingError
from prismlens.models.checkpoint import zoo_manifest, zoo_names
from prismlens.prism import prism as run_prism
from prismlens.results import check_free
from prismlens.trace import load
from prismlens.types import LETTERS, Item

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Does a vision-language model that thinks in latents use its latents?",
)

Model = Annotated[str, typer.Argument(help="a shipped model (tiny/lvr), a local folder, or a hub id")]


def main() -> None:
    """The entry point: a prismlens error is printed without a traceback and ends the program with status 1."""
    warnings.showwarning = _plain_warning
    try:
        app()
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
    out: Annotated[Path | None, typer.Option(help="a new folder for the rows and the manifest")] = None,
) -> None:
    """Break the latents of MODEL in several ways and say whether its answers need them.

    Example: prismlens prism tiny/lvr --n 200 --out runs/lvr
    """
    if out is not None:
        check_free(out.expanduser().resolve())
    chosen = load_items(items, n=n, seed=seed)
    report = run_prism(load(model), chosen, seed=seed, progress=True)
    typer.echo(report.table())
    typer.echo(str(report.verdict))
    if out is not None:
        typer.echo(f"saved in {report.save(out)}")


@app.command()
def ask(
    model: Model,
    image: Annotated[Path, typer.Argument(help="an image file")],
    question: Annotated[str, typer.Argument(help="the question, without options")],
    option: Annotated[list[str] | None, typer.Option(help="an option; repeat it for each")] = None,
    latent_steps: Annotated[int | None, typer.Option(help="latents; the checkpoint's own number when left out")] = None,
) -> None:
    """Ask MODEL one QUESTION about one IMAGE.

    Example: prismlens ask tiny/lvr scene.png "What is the color of the star?" --option red --option blue
    """
    run = load(model).generate(
        [Item(image=image, question=question, options=tuple(option or ()), id=image.name)], latent_steps=latent_steps
    )
    typer.echo(run.text[0])
    typer.echo(f"latents: {int(run.steps_taken[0])}")
    if option:
        shares = run.option_logprobs[0].softmax(0)
        for letter, text, share in zip(LETTERS, option, shares.tolist(), strict=False):
            typer.echo(f"  {letter} {text}: {share:.3f}{'  <- chosen' if letter == run.choice[0] else ''}")


app.command()(train)
app.command()(convert)


@app.command()
def zoo(
    names: Annotated[list[str] | None, typer.Argument(help="models to build; all of them by default")] = None,
    build: Annotated[bool, typer.Option("--build", help="train them again instead of listing them")] = False,
    out: Annotated[Path, typer.Option(help="with --build: receives one folder a model")] = Path("runs/zoo"),
    seed: Annotated[int, typer.Option(help="with --build: of batches and new weights")] = 0,
    processes: Annotated[int, typer.Option(help="with --build: models trained side by side")] = 2,
) -> None:
    """List the shipped models, how they were made, and how often they are right; or build them again.

    Example: prismlens zoo --build lvr n-lvr --out runs/zoo
    """
    if build:
        build_zoo(names or [], out, seed, processes)
        return
    if names:
        raise SettingError(f"prismlens zoo {' '.join(names)}", needed="--build before names of models")
    table = Table("model", "what is known about it", "held-out accuracy", "steps from")
    for name in zoo_names():
        manifest = zoo_manifest(name)
        accuracy, low, high = manifest["accuracy"]["all"]  # type: ignore[index]
        steps = f"{manifest['steps']} {str(manifest.get('parent', 'scratch')).removeprefix('tiny/')}"
        table.add_row(name, str(manifest["mechanism"]), f"{accuracy:.3f} [{low:.3f}, {high:.3f}]", steps)
    Console().print(table)


@app.command()
def demo(n: Annotated[int, typer.Option(help="held-out items for each model")] = DEFAULT_SHAPES) -> None:
    """Ask four models, three of them of known mechanism, and print each verdict beside the construction."""
    run_demo(n, echo=typer.echo)
