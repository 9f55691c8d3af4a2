"""Shows a value where it was asked for: as HTML in a notebook, as text elsewhere; knows no value of prismlens."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


def in_notebook() -> bool:
    """Whether a Jupyter kernel is running, which shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and getattr(shell, "kernel", None) is not None


@dataclass(frozen=True)
class Shown:
    """HTML that a notebook displays.

    Args:
        html: escaped already.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html


def show(value: Any, text: str | None = None) -> None:
    """Display an item, a run or a result in a notebook; print it as text where there is none.

    Args:
        value: has ``_repr_html_``.
        text: says the same without markup; by default what the value's ``_repr_text_`` gives, or else its ``str``.
    """
    if text is None:
        text = value._repr_text_() if hasattr(value, "_repr_text_") else str(value)
    if in_notebook():
        from IPython.display import display

        display(value)
    else:
        print(text)
