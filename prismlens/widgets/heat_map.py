"""A grid of numbers as coloured buttons that can be clicked or reached by keyboard; knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as w

ROW_LABEL = "72px"
CELL = "58px"


class HeatMap(w.VBox):
    """Numbers by row and column, the first row at the bottom, as layers are drawn.

    Args:
        on_pick: called with row and column when a cell is chosen.
    """

    def __init__(self, on_pick: Callable[[int, int], None]) -> None:
        super().__init__([])
        self._on_pick = on_pick
        self.cells: dict[tuple[int, int], w.Button] = {}

    def fill(
        self, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], *, signed: bool
    ) -> None:
        """Draw other numbers.

        Args:
            values: one sequence a row.
            rows, columns: their labels.
            signed: colours run from orange over white to blue, with 0 in the middle; else from white to blue over 0..1.
        """
        top = max((abs(value) for row in values for value in row), default=0.0) or 1.0
        self.cells = {}
        lines = []
        for number in reversed(range(len(values))):
            label = w.Label(rows[number], layout=w.Layout(width=ROW_LABEL))
            cells = [self._cell(values, number, column, rows, columns, top, signed) for column in range(len(columns))]
            lines.append(w.HBox([label, *cells]))
        foot = [w.Label(text, layout=w.Layout(width=CELL)) for text in columns]
        self.children = [*lines, w.HBox([w.Label("", layout=w.Layout(width=ROW_LABEL)), *foot])]

    def _cell(
        self,
        values: Sequence[Sequence[float]],
        row: int,
        column: int,
        rows: Sequence[str],
        columns: Sequence[str],
        top: float,
        signed: bool,
    ) -> w.Button:
        value = values[row][column]
        button = w.Button(
            description=f"{value:+.2f}" if signed else f"{value:.2f}",
            tooltip=f"{rows[row]}, {columns[column]}: {value:.4f}",
            layout=w.Layout(width=CELL, height="30px", margin="1px"),
        )
        back, ink = colour(value / top if signed else value)
        button.style.button_color, button.style.text_color = back, ink
        button.on_click(lambda _: self._on_pick(row, column))
        self.cells[row, column] = button
        return button


def colour(share: float) -> tuple[str, str]:
    """Background and ink for a share in -1..1: orange below 0, white at 0, blue above, for colour-blind readers too."""
    share = min(max(share, -1.0), 1.0)
    end = (0, 114, 178) if share >= 0 else (213, 94, 0)
    red, green, blue = (round(255 + (part - 255) * abs(share)) for part in end)
    return f"#{red:02x}{green:02x}{blue:02x}", "white" if abs(share) > 0.6 else "#111111"
