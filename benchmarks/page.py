"""Writes docs/performance.md from the benchmarks' records; measures nothing.

python benchmarks/page.py
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORDS, PAGE = HERE / "records", HERE.parent / "docs" / "performance.md"
SUBJECTS = {
    "hooks": "Reading activations",
    "sweep": "A sweep of conditions",
    "patching": "A patching sweep",
    "probes": "A map of probes",
    "training": "Training",
}
"""Benchmark -> heading."""
HEAD = """# Performance

Made by `python benchmarks/page.py` from the JSON that `make bench` leaves in `benchmarks/records`; no figure is typed.
What can be compared between machines are ratios of two sides that took turns in one run; seconds are one machine's.
"""


def page(records: Path = RECORDS) -> str:
    """The page: of each benchmark what it compares and its figures, or that it was not measured."""
    return "\n".join([HEAD, *(part for name in SUBJECTS for part in section(name, records))])


def section(name: str, records: Path) -> Iterator[str]:
    """One benchmark: its heading, what its own docstring says, and its record."""
    said = (ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or "").replace("    python", "`python")
    paragraphs = [text + "`" if text.startswith("`python") else text for text in said.split("\n\n")]
    yield f"## {SUBJECTS[name]}\n\n" + "\n\n".join(paragraphs) + "\n"
    file = records / f"{name}.json"
    if not file.exists():
        yield f"**Not measured yet**: there is no `benchmarks/records/{name}.json`.\n"
        return
    yield "| figure | value |\n|---|---|"
    yield from (f"| {key} | {value} |" for key, value in leaves(json.loads(file.read_text())))
    yield ""


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every number and text of a record under the path that leads to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}, {key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        for place, inner in enumerate(value):
            yield from leaves(inner, f"{name} {place + 1}")
    elif isinstance(value, list):
        yield name, ", ".join(shown(one) for one in value)
    else:
        yield name, shown(value)


def shown(value: object) -> str:
    """A number to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.name}")
