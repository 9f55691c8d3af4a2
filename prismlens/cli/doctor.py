"""`prismlens doctor`: whether this installation is sound."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from prismlens.cli.output import Json, emit
from prismlens.doctor import WRONG, examine


def doctor(
    self_test: Annotated[bool, typer.Option(help="also load, check and run a shipped model, about 10 seconds")] = True,
    as_json: Json = False,
) -> None:
    """Look at versions, hardware and known incompatibilities, and try a shipped model; status 1 where one is wrong.

    Example: prismlens doctor --json
    """
    found = examine(self_test=self_test)
    wrong = [one.what for one in found if one.state == WRONG]
    if as_json:
        emit({"sound": not wrong, "findings": [asdict(one) for one in found]})
    else:
        for one in found:
            typer.echo(f"{one.state:5}  {one.what:20} {one.found}" + (f"\n{'':28}fix: {one.fix}" if one.fix else ""))
        typer.echo(f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong")
    if wrong:
        raise typer.Exit(1)
