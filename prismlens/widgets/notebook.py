"""Whether a widget can be shown here, and the message where it cannot; draws nothing."""

from __future__ import annotations

import importlib.util
import sys

from prismlens.errors import SettingError

FIX = "pip install 'prismlens[widgets]', and run the cell in JupyterLab, Notebook 7 or VS Code"


def require_notebook(name: str) -> None:
    """Raise a SettingError where ipywidgets is missing or no notebook is running.

    Args:
        name: of the widget, for the message.
    """
    if importlib.util.find_spec("ipywidgets") is None:
        raise SettingError(f"{name} without ipywidgets", needed="the extra `widgets`", fix=FIX)
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or getattr(shell, "kernel", None) is None:
        raise SettingError(
            f"{name} outside a notebook",
            needed="a Jupyter kernel, which shows widgets",
            cause="it was called from a script or a terminal",
            fix="use prismlens.prism or prismlens.corrupt in scripts; for the widget: " + FIX,
        )
