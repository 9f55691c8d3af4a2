"""The widget behind `explore`: draws what an `Exploration` computes and passes on what a person chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as w

import prismlens.markup as markup
from prismlens.errors import PrismlensError
from prismlens.exploration import KNOBS, MAPS, SITES, STATE, Exploration
from prismlens.interventions import Edit
from prismlens.positions import Role, latent
from prismlens.widgets.heat_map import HeatMap

ROLE_COLOURS = {
    "template": "#d9d9d9", "image": "#a6cee3", "question": "#fff2ae", "options": "#fddbc7", "lead": "#d9d9d9",
    "latent": "#e69f00", "between": "#cab2d6", "answer": "#b2df8a",
}  # fmt: skip
WIDE = w.Layout(width="340px")


class Explorer(w.VBox):
    """The widget; every part is an attribute, so that a script can drive it as a person does.

    Args:
        exploration: the model and the items.
    """

    def __init__(self, exploration: Exploration) -> None:
        super().__init__([])
        self.exploration = exploration
        self._at_work = False
        self.status: Any = w.HTML()
        names = [f"{i}: {item.question}" for i, item in enumerate(exploration.items)]
        self.item: Any = w.Dropdown(
            options=list(zip(names, range(len(names)), strict=True)), description="item", layout=WIDE
        )
        self.picture: Any = w.HTML()
        self.bars: Any = w.HTML()
        self.strip: Any = w.HTML()
        self.site: Any = w.Dropdown(options=SITES, description="site", layout=WIDE)
        self.layer: Any = w.IntSlider(0, 0, exploration.n_layers - 1, description="layer", disabled=True, layout=WIDE)
        self.steps: Any = w.SelectMultiple(description="latents", rows=4, layout=WIDE)
        self.operation: Any = w.Dropdown(options=list(KNOBS), description="operation", layout=WIDE)
        self.strength: Any = w.FloatSlider(0, min=0, max=1, step=0.05, description="strength", layout=WIDE)
        self.meaning: Any = w.HTML()
        self.mode: Any = w.ToggleButtons(options=["free", "held"], description="run", style={"button_width": "90px"})
        self.map: Any = w.Dropdown(options=list(MAPS), description="map", layout=WIDE)
        self.caption: Any = w.HTML()
        self.heat = HeatMap(self.pick)
        self.detail: Any = w.HTML()
        self.children = self._laid_out()
        self._listen()
        self._busy(self._show_item)

    def pick(self, layer: int, step: int) -> None:
        """Show what the state of a layer at a latent resembles."""

        def show() -> None:
            cell = self.exploration.cell(self.item.value, layer, step)
            item = self.exploration.items[self.item.value]
            picture = self.exploration.picture(self.item.value)
            drawn = [("nearest", "cosine", cell.patches)]
            if cell.attention is not None:
                drawn.append(("attention", f"{cell.attention.sum():.2f} of it on the image,", cell.attention))
            parts = [] if cell.attention is not None else [markup.title("attention", "this model keeps no pattern")]
            for label, note, grid in drawn:
                low, high = float(grid.min()), float(grid.max())
                heat = ((grid - low) / max(high - low, 1e-9)).tolist()
                parts.append(
                    markup.title(label, f"{note} {low:.2f} to {high:.2f}")
                    + markup.picture(picture, item.boxes, width=220, label=label, heat=heat)
                )
            self.detail.value = markup.block(
                markup.title(f"layer {layer}, latent z{step + 1}", "what the state resembles and looks at"),
                markup.columns(*parts, markup.title("likeliest tokens", "logit lens") + markup.bars(dict(cell.tokens))),
            )

        self._busy(show)

    def _laid_out(self) -> list[w.Widget]:
        """All parts, top to bottom."""
        controls = w.VBox(
            [self.steps, self.operation, self.strength, self.meaning, self.site, self.layer, self.mode],
        )
        row = w.Layout(flex_flow="row wrap", grid_gap="0 32px")
        return [
            w.HBox([self.item, self.status]),
            w.HBox([self.picture, self.bars], layout=row),
            self.strip,
            w.HBox([controls, w.VBox([self.map, self.caption, self.heat, self.detail])], layout=row),
        ]

    def _listen(self) -> None:
        """Call what has to be drawn again when a choice changes."""
        knobs = (self.site, self.layer, self.steps, self.operation, self.strength, self.mode)
        on: list[tuple[Any, Callable[[], None]]] = [(self.item, self._show_item), (self.map, self._show_map)]
        on += [(self.mode, self._show_map)]
        on += [(one, self._show_answer) for one in knobs]
        for part, action in on:
            part.observe(lambda _, action=action: self._busy(action), "value")

    def _busy(self, action: Callable[[], None]) -> None:
        """Run an action under a busy sign; what goes wrong is shown in the widget.

        What an action changes by itself (the choice of latents of another item) is part of it and starts no other.
        """
        if self._at_work:
            return
        self._at_work = True
        self.status.value = '<span role="status">⏳ computing …</span>'
        try:
            action()
        except PrismlensError as error:
            self.status.value = (
                f'<span role="alert" style="color:#D55E00;white-space:pre-wrap">{markup.escaped(error)}</span>'
            )
        except Exception as error:  # a notebook swallows what a callback raises; a person must see it
            text = f"{type(error).__name__}: {error}"
            self.status.value = (
                f'<span role="alert" style="color:#D55E00;white-space:pre-wrap">{markup.escaped(text)}</span>'
            )
        else:
            self.status.value = '<span role="status">ready</span>'
        finally:
            self._at_work = False

    def _show_item(self) -> None:
        """Everything, for another item."""
        number = self.item.value
        own, n = self.exploration.items[number], self.exploration.n_steps(number)
        note = "" if not own.category else own.category
        self.picture.value = markup.block(
            markup.title(own.question, note),
            markup.picture(self.exploration.picture(number), own.boxes, label=own.question),
        )
        self.steps.options = [(f"z{step + 1}", step) for step in range(n)]
        self.steps.value = tuple(range(n))
        pieces = [(text, ROLE_COLOURS.get(role, "#ffffff"), role) for text, role in self.exploration.pieces(number)]
        self.strip.value = markup.block(
            markup.title("the sequence", "what the model reads and writes"), markup.strip(pieces)
        )
        self.detail.value = markup.block(markup.title("", "click a cell to see what the state resembles"))
        self._show_answer()
        self._show_map()

    def _show_answer(self) -> None:
        """The probabilities of the options, clean and under the edit that is chosen."""
        number = self.item.value
        own = self.exploration.items[number]
        self.layer.disabled = self.site.value != STATE
        meaning = KNOBS[self.operation.value][1]
        self.strength.disabled = not meaning
        self.meaning.value = f'<div style="margin-left:90px;opacity:.75">{markup.escaped(meaning)}</div>'
        clean = self.exploration.shares(number)
        edit = self.edit()
        shares = clean if edit is None else self.exploration.shares(number, self.exploration.edited(number, [edit]))
        right = None if own.answer is None else f"{own.answer} {own.content}"
        said = "as the model runs" if edit is None else str(edit)
        self.bars.value = markup.block(
            markup.title("the answer", "outline: clean run, filled: now"),
            markup.bars(shares, before=clean, marked=right),
            markup.title("", said),
        )

    def _show_map(self) -> None:
        """The map that is chosen."""
        number = self.item.value
        self.caption.value = markup.block(markup.title("", MAPS[self.map.value][1]))
        values, signed = self.exploration.map(number, self.map.value, self.mode.value)
        rows = [f"layer {layer}" for layer in range(values.shape[0])]
        self.heat.fill(values.tolist(), rows, [f"z{step + 1}" for step in range(values.shape[1])], signed=signed)

    def edit(self) -> Edit | None:
        """The edit that is chosen; None where no latent is, or where the strength is 0."""
        build, meaning = KNOBS[self.operation.value]
        steps = self.steps.value
        if not steps or (meaning and self.strength.value == 0):
            return None
        every = len(steps) == len(self.steps.options)
        role: Role = latent if every else latent[steps[0]]
        for step in () if every else steps[1:]:
            role = role | latent[step]
        return Edit(build(self.strength.value), role, self.site.value.format(layer=self.layer.value), self.mode.value)
