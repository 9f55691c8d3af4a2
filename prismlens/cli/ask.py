"""`prismlens ask`: one question about one image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prismlens.cli.output import Json, emit
from prismlens.trace import load
from prismlens.types import LETTERS, Item


def ask(
    model: Annotated[str, typer.Argument(help="a shipped model (tiny/lvr), a local folder, or a hub id")],
    image: Annotated[Path, typer.Argument(help="an image file")],
    question: Annotated[str, typer.Argument(help="the question, without options")],
    option: Annotated[list[str] | None, typer.Option(help="an option; repeat it for each")] = None,
    latent_steps: Annotated[int | None, typer.Option(help="latents; the checkpoint's own number when left out")] = None,
    as_json: Json = False,
) -> None:
    """Ask MODEL one QUESTION about one IMAGE.

    Example: prismlens ask tiny/lvr scene.png "What is the color of the star?" --option red --option blue
    """
    run = load(model).generate(
        [Item(image=image, question=question, options=tuple(option or ()), id=image.name)], latent_steps=latent_steps
    )
    steps, choice = int(run.steps_taken[0]), run.choice[0]
    shares = run.option_logprobs[0].softmax(0).tolist() if option else []
    options = [
        {"letter": letter, "text": text, "probability": share}
        for letter, text, share in zip(LETTERS, option or (), shares, strict=False)
    ]
    if as_json:
        emit({"model": model, "text": run.text[0], "choice": choice, "latents": steps, "options": options})
        return
    typer.echo(run.text[0])
    typer.echo(f"latents: {steps}")
    for one in options:
        chosen = "  <- chosen" if one["letter"] == choice else ""
        typer.echo(f"  {one['letter']} {one['text']}: {one['probability']:.3f}{chosen}")
