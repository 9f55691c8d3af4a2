"""Whether every site is where its name says, checked on a made-up run when a model loads; knows no user's items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from nnsight import NNsight

from prismlens.errors import EditError, WiringError
from prismlens.models.latent import LatentModel
from prismlens.models.loop import LoopSettings
from prismlens.models.processor import LVRProcessor
from prismlens.sites import LATENT, site
from prismlens.trace.names import matching_names
from prismlens.trace.views import VIEWS
from prismlens.trace.wiring_edits import dead_sites
from prismlens.trace.wiring_reads import attention, latents, modules, read, replay, shapes, stream
from prismlens.trace.wiring_run import watched_run, whole
from prismlens.unrolled import Unrolled, take

CHECKS = ("path", "latent", "replay", "fires", "shape", "stream", "attention", "no-op", "edit")
"""In the order in which they are made; a later one rests on the earlier."""


@dataclass(frozen=True)
class Fault:
    """Something that is not as its name says.

    Args:
        site: the name of the site, with its layer.
        check: one of `CHECKS`.
        what: what was found.
    """

    site: str
    check: str
    what: str


@dataclass(frozen=True)
class Wiring:
    """What the self-check found.

    Args:
        sites: the sites that were checked.
        faults: in the order of the checks and, within one, of the forward; the first is the one to look at.
    """

    sites: tuple[str, ...]
    faults: tuple[Fault, ...]

    def frame(self) -> pd.DataFrame:
        """One row a site or place: its name, whether it is sound, and the first thing that is wrong with it."""
        first = {fault.site: f"{fault.check}: {fault.what}" for fault in reversed(self.faults)}
        names = [*self.sites, *(name for name in dict.fromkeys(f.site for f in self.faults) if name not in self.sites)]
        return pd.DataFrame(
            {"site": names, "sound": [n not in first for n in names], "fault": [first.get(n, "") for n in names]}
        )

    def require(self) -> None:
        """Raise WiringError, naming the first fault, where there is one."""
        if self.faults:
            first, others = self.faults[0], {fault.site for fault in self.faults[1:]} - {self.faults[0].site}
            more = f" (and {len(others)} more: {', '.join(sorted(others)[:4])})" if others else ""
            raise WiringError(
                f"{first.site} fails the check of its {first.check}: {first.what}{more}",
                needed="a model whose sites are where their names say",
                cause="modules that were replaced or patched, weights of zero, or another version of transformers",
                fix="load the model afresh; check=False loads it all the same, and model.check() says what is wrong",
            )


def _dead(
    hf: LatentModel, wrapper: NNsight, inputs: dict[str, Any], run: Unrolled, names: list[str]
) -> list[tuple[str, str, str]]:
    """Sites at which edits do nothing, or cannot be made."""
    found: list[tuple[str, str, str]] = []
    try:
        for fault in dead_sites(hf, wrapper, inputs, take(run, [0]), names):
            found.append(fault)
    except EditError as error:
        found.append((error.given.split()[0], "edit", error.given))
    return found


def _checked_names(hf: LatentModel) -> list[str]:
    """The sites that `run_with_cache` keeps by default; without those computed from weights that lie elsewhere."""
    names = matching_names(None, hf.n_layers, head=hf.has_head)
    here = hf.device.type == "meta" or not any(value.is_meta for value in hf.parameters())
    return [name for name in names if here or not VIEWS[site(name, hf.n_layers).view].derived]


@torch.no_grad()
def check_wiring(hf: LatentModel, wrapper: NNsight, processor: LVRProcessor, settings: LoopSettings) -> Wiring:
    """Run two made-up items and compare what sites give with plain hooks, with each other and with edits.

    A check that fails stops those that rest on it. Without latents in the model the checks of latents are left out; on
    the meta device, where nothing can run, all but that of the modules.

    Args:
        hf: the model, in eval mode.
        wrapper: its nnsight wrapper.
        processor: its processor.
        settings: how it decodes.
    """
    names = _checked_names(hf)
    misplaced = tuple(Fault(*fault) for fault in modules(hf, names))
    if misplaced or hf.device.type == "meta":
        return Wiring(tuple(names), misplaced)
    run, seen = watched_run(hf, processor, settings)
    if not run.latents.shape[1]:
        names = [name for name in names if name != LATENT]
    inputs = whole(hf, processor, run)
    found = [*latents(run, seen), *replay(hf, run, seen, inputs)]
    silent, values = read(wrapper, hf, inputs, run, names)
    found += silent
    if not silent:
        found += [*shapes(hf, values), *stream(hf, run, inputs, values), *attention(hf, run, inputs)]
        found += _dead(hf, wrapper, inputs, run, names)
    return Wiring(tuple(names), tuple(Fault(*fault) for fault in found))
