"""The command line, a file for each kind of command."""

from __future__ import annotations

from prismlens.cli.app import app, main

__all__ = ["app", "main"]
