"""Shows a value where it was asked for: as HTML in a notebook, as text elsewhere; knows no value of prismlens."""

from __future__ import annotations

import sys
from typing import Any


def in_notebook() -> bool:
    """Whether a Jupyter kernel is running, which shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and getattr(shell, "kernel", None) is not None


def show(value: Any, text: str) -> None:
    """Display a value that has ``_repr_html_`` in a notebook; print the text where there is none.

    Args:
        value: the value.
        text: says the same without markup.
    """
    if in_notebook():
        from IPython.display import display

        display(value)
    else:
        print(text)
