"""`explore`: the way to the widget, with a message where it cannot be shown; computes nothing itself."""

from __future__ import annotations

from collections.abc import Sequence

from prismlens.exploration import Exploration
from prismlens.trace import PrismModel
from prismlens.types import Item
from prismlens.widgets.notebook import require_notebook


def explore(model: PrismModel, items: Sequence[Item]) -> object:
    """A widget to look at one item after another and to break its latents.

    Choose an item; pick latents, a site, an operation and its strength, and see the probabilities of the options move
    beside those of the clean run. Click a cell of the map (layers by latent steps) to see what that state resembles.

    Args:
        model: a model with latents.
        items: with options and answers; donors and means are taken from all of them.

    Raises:
        SettingError: ipywidgets is missing, no notebook is running, or the model has no latents.
    """
    require_notebook("explore")
    from prismlens.widgets.explorer import Explorer

    return Explorer(Exploration(model, items))
