"""Is this installation sound? Versions, hardware, known incompatibilities, and a self-test on a shipped model."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from prismlens.data.load import load_items
from prismlens.trace import load

PACKAGE = "prismlens"
MODEL = "tiny/lvr"
SCENES = 16
RIGHT = 10
"""The self-test's model is right on more than nine of ten scenes; fewer than this many of `SCENES` has p < .001."""
OK, NOTE, WRONG = "ok", "note", "wrong"
"""What a finding may be; only `WRONG` makes an installation unsound."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: its name.
        state: `OK`, `NOTE` (something optional is missing) or `WRONG`.
        found: what is there.
        fix: what to do, where something can be done.
    """

    what: str
    state: str
    found: str
    fix: str = ""


def examine(*, self_test: bool = True) -> tuple[Finding, ...]:
    """Look at everything in turn; a check that fails is a finding, never an error.

    Args:
        self_test: also load, check and run a shipped model.
    """
    checks = [*CHECKS, ("self-test", self_tested)] if self_test else CHECKS
    return tuple(finding for name, check in checks for finding in _guarded(name, check))


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one check; whatever it raises is one too, since a broken installation raises anything."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(name, WRONG, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def python() -> Iterator[Finding]:
    """The interpreter against what the package declares."""
    wanted = "".join(importlib.metadata.metadata(PACKAGE).get_all("Requires-Python") or ())
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", OK if fits else WRONG, found, "" if fits else f"use Python {wanted}")


def libraries() -> Iterator[Finding]:
    """Every required library against its range, and every extra: whole, or what is missing."""
    needs = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or ()]
    for need in needs:
        if need.marker is None:
            found = version(need.name)
            fits = found is not None and need.specifier.contains(found, prereleases=True)
            fix = "" if fits else f"pip install '{need.name}{need.specifier}'"
            yield Finding(need.name, OK if fits else WRONG, found or "not installed", fix)
    for extra in importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or ():
        own = [need for need in needs if need.marker is not None and need.marker.evaluate({"extra": extra})]
        lacking = [need.name for need in own if not _satisfied(need)]
        found = f"lacks {', '.join(lacking)}" if lacking else "whole"
        fix = f"pip install '{PACKAGE}[{extra}]'" if lacking else ""
        yield Finding(f"extra {extra}", NOTE if lacking else OK, found, fix)


def _satisfied(need: Requirement) -> bool:
    """Whether a requirement is met; one that names this package's own extras is judged by those extras."""
    found = version(need.name)
    return need.name == PACKAGE or (found is not None and need.specifier.contains(found, prereleases=True))


def version(name: str) -> str | None:
    """The installed version of a distribution; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware() -> Iterator[Finding]:
    """What torch was built for, and what it can use."""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Finding("torch build", OK, f"{torch.__version__}, {build}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("gpu", OK, ", ".join(names))
    elif torch.backends.mps.is_available():
        yield Finding("gpu", OK, "Apple (mps)")
    elif torch.version.cuda:
        fix = "install the driver, check CUDA_VISIBLE_DEVICES, or use a build of torch that fits the driver"
        yield Finding("gpu", NOTE, "torch was built for CUDA and sees no device", fix)
    else:
        yield Finding("gpu", OK, "none; everything runs on the CPU")


def torchvision() -> Iterator[Finding]:
    """torchvision is not needed, but transformers imports it where it is there, and one of another torch breaks it."""
    found = version("torchvision")
    if found is None:
        yield Finding("torchvision", OK, "not installed, and not needed")
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        why = f"{found} does not work with torch {torch.__version__}: {str(error).splitlines()[0]}"
        yield Finding("torchvision", WRONG, why, "pip uninstall torchvision, or install the one that fits this torch")
    else:
        yield Finding("torchvision", OK, found)


def self_tested() -> Iterator[Finding]:
    """Load a shipped model, see that its hooks are where their names say, and have it answer."""
    began = time.perf_counter()
    model = load(MODEL, check=False)
    yield Finding("load", OK, f"{MODEL}, {time.perf_counter() - began:.1f} s")
    wiring = model.check()
    faults = [f"{fault.site}: {fault.what}" for fault in wiring.faults]
    fix = "another version of transformers or nnsight: install the versions of constraints.txt" if faults else ""
    yield Finding("wiring", WRONG if faults else OK, faults[0] if faults else f"{len(wiring.sites)} sites sound", fix)
    run = model.generate(load_items("shapes", n=SCENES))
    right = sum(map(bool, run.correct))
    found = f"{right} of {SCENES} scenes right, {time.perf_counter() - began:.1f} s in all"
    yield Finding("answers", OK if right >= RIGHT else WRONG, found)


CHECKS: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
    ("python", python),
    ("libraries", libraries),
    ("hardware", hardware),
    ("torchvision", torchvision),
)
"""Name -> check, in the order in which they are made."""
