"""The values at sites inside one open trace: read once, kept, written through; knows no edits and no positions."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from nnsight import NNsight
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from prismlens.models.hooked_attention import Switch
from prismlens.sites import Site
from prismlens.trace.views import VIEWS, Around, written

_NEEDS_SOURCE = ("normalized", "scale", "result")


class Taps:
    """What one traced forward has at its sites.

    nnsight hands out a module's end once, in forward order. Several names can stand for one end (an output
    projection's is ``hook_attn_out`` and, by heads, ``attn.hook_result``), and some need both ends of a module; so
    every end that was reached is kept, and a change is made to what is kept as well as in the model.

    Args:
        wrapper: the model's nnsight wrapper; a trace over one forward of it is open when values are asked for.
        grid_thw: the images' grids, ``[image, 3]``, where the vision tower runs inside the trace.
        switch: of the attention implementation, turned on where a site needs it; the owner of the trace restores it.
    """

    def __init__(self, wrapper: NNsight, grid_thw: Tensor | None = None, switch: Switch | None = None) -> None:
        self._wrapper, self._grid, self._switch = wrapper, grid_thw, switch
        self._kept: dict[tuple[str, str], Tensor] = {}
        self._scales: dict[str, Tensor] = {}

    def value(self, site: Site) -> Tensor:
        """The value of a site, positions on the second axis. Not a copy where the name is the module's own tensor."""
        if site.eager and self._switch is not None:
            self._switch.turn_on()
        if site.view == "whole":
            return self._raw(site.path, _end(site))
        around = self._around(site)
        return VIEWS[site.view].split(self._raw(site.path, _end(site)), around)

    def write(self, site: Site, old: Tensor, new: Tensor) -> None:
        """Go on with `new` where the site had `old`."""
        around, end = self._around(site), _end(site)
        raw = self._raw(site.path, end)
        changed = written(raw, old, new, VIEWS[site.view], around)
        self._note_scale(site, new)
        envoy: Any = attrgetter(site.path)(self._wrapper)
        if site.end == "shared":
            # The tensor itself is all that the module and the layer around it have in common. It is handed back as it
            # is first, for nnsight to refuse where the forward is past this place.
            envoy.input = raw
            raw.copy_(changed)
            return
        if end == "output":
            envoy.output = changed
        else:
            envoy.input = changed
        self._kept[site.path, end] = changed

    def in_graph(self, site: Site) -> Tensor:
        """The value of a site as a tensor that the rest of the forward is computed from, so that it has a gradient."""
        value = self.value(site)
        if site.end == "shared":
            if not value.requires_grad:
                value.requires_grad_()
            return value
        value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        self.rewire(site, value)
        return value

    def rewire(self, site: Site, value: Tensor) -> None:
        """Compute the rest of the forward from this tensor."""
        envoy: Any = attrgetter(site.path)(self._wrapper)
        end = _end(site)
        joined = VIEWS[site.view].join(value, self._around(site))
        self._note_scale(site, value)
        if end == "output":
            envoy.output = joined
        else:
            envoy.input = joined
        self._kept[site.path, end] = joined

    def forget(self, path: str) -> None:
        """Let go of a module's ends, for which nothing else is going to ask: a layer's output is large."""
        self._scales.pop(path, None)
        for end in ("input", "output"):
            self._kept.pop((path, end), None)

    def _note_scale(self, site: Site, value: Tensor) -> None:
        """A norm's normalised state, which comes after its scale, is computed with the scale that took its place."""
        if site.view == "scale":
            self._scales[site.path] = value

    def _raw(self, path: str, end: str) -> Tensor:
        """What is at a module's end now."""
        if (path, end) not in self._kept:
            envoy: Any = attrgetter(path)(self._wrapper)
            self._kept[path, end] = envoy.output if end == "output" else envoy.input
        return self._kept[path, end]

    def _around(self, site: Site) -> Around:
        root: nn.Module = self._wrapper._module
        source = self._raw(site.path, "input") if site.view in _NEEDS_SOURCE else None
        units = _units(root, self._grid) if site.view == "patches" else None
        owner = root.get_submodule(site.path.rpartition(".")[0])
        return Around(root.get_submodule(site.path), owner, source, units, self._scales.get(site.path))


def _end(site: Site) -> str:
    return "output" if site.end == "output" else "input"


def _units(root: nn.Module, grid_thw: Tensor | None) -> Tensor:
    """The tower's order of merged units, as it computes it from the grids itself."""
    tower: Any = root.get_submodule("model.visual")
    assert grid_thw is not None
    index, _ = get_vision_window_index(grid_thw, tower.spatial_merge_size, tower.window_size, tower.patch_size)
    return torch.as_tensor(index, device=grid_thw.device)
