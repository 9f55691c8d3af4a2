"""One place in the network, as data: a module, an end of it, a view of what is there; knows no model and no values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """One place: a module of the model, which end of it, and how the tensor there becomes what the name promises.

    Args:
        name: the TransformerLens name, e.g. ``"blocks.2.hook_resid_post"``.
        path: the module, as a path from the model.
        end: ``"input"`` (first positional argument), ``"output"``, or ``"shared"``: the first positional argument, with
            which the layer around the module goes on too, so that a change has to be made in the tensor itself.
        order: sorts sites as a forward reaches them.
        view: how the module's tensor is read and written, a name of `trace.views.VIEWS`.
        axes: of the value; sizes are those of `model.cfg`, ``query`` and ``key`` are positions, ``head`` is ``kv_head``
            (`n_key_value_heads`) at keys and values.
        eager: only attention that spells out its arithmetic has it: a run that asks for it switches to such attention.
        asked: kept by `run_with_cache` only where it is asked for by name or by a predicate: it is large, needs eager
            attention, or lies in the vision tower.
    """

    name: str
    path: str
    end: str
    order: tuple[int, int]
    view: str = "whole"
    axes: str = "batch pos d_model"
    eager: bool = False
    asked: bool = False

    @property
    def vision(self) -> bool:
        """Whether it lies in the vision tower: rows are patches or image tokens of all images, no batch and no pos."""
        return not self.axes.startswith("batch")

    @property
    def layer(self) -> int | None:
        """The number of its block, of the language model or of the vision tower; None outside blocks."""
        numbers = [part for part in self.name.split(".") if part.isdigit()]
        return int(numbers[0]) if numbers else None
