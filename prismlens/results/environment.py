"""The versions that decide the numbers, for a manifest; imports none of the libraries."""

from __future__ import annotations

import importlib.metadata
import platform

RECORDED = ("torch", "transformers", "nnsight", "numpy", "prismlens")


def environment_manifest() -> dict[str, str | None]:
    """Versions of Python and of the libraries that decide the numbers (None where not installed), system, processor."""
    versions = {name: _version(name) for name in RECORDED}
    where = f"{platform.system()} {platform.machine()}"
    return {"python": platform.python_version(), "platform": where, **versions}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
