"""Hook names as attributes inside an open trace: ``model.blocks[i].attn.hook_q``; knows no batches and no runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from prismlens.errors import EditError, SiteError
from prismlens.positions import Role, resolve
from prismlens.sites import Site, canonical
from prismlens.sites.table import ALIASES, WHOLE_ALIASES
from prismlens.trace.acts import as_named, fitting, slots
from prismlens.trace.taps import Taps
from prismlens.trace.views import VIEWS
from prismlens.unrolled import Unrolled


class OpenTrace:
    """What an open trace has at its sites, by name.

    Args:
        taps: of the forward.
        sites: every site of the model, by name.
        run: the sequences that the forward runs.
    """

    def __init__(self, taps: Taps, sites: dict[str, Site], run: Unrolled) -> None:
        self._taps, self.sites, self._run = taps, sites, run
        self._given: dict[str, Tensor] = {}
        self._watched: list[tuple[str, Tensor, int]] = []

    def read(self, name: str, role: Role | None) -> Tensor:
        """The value at a site, at the positions of a role where there is one.

        Changes made in place to a whole value are those of the model. A value that is computed or picked from the
        model's own tensor is watched instead: to change it, assign it.
        """
        site = self.sites[name]
        if role is not None:
            return self._watch(name, self._picked(site, role))
        if name not in self._given:
            value = self._taps.value(site)
            if _is_models_own(site) and site.end != "shared":
                # A copy of its own: the tensor may be another module's output as well.
                value = value.clone()
                self._taps.rewire(site, value)
            elif not _is_models_own(site):
                self._watch(name, value)
            self._given[name] = as_named(site, value)
        return self._given[name]

    def write(self, name: str, role: Role | None, new: object) -> None:
        """Go on with this value at a site, at the positions of a role where there is one.

        Raises:
            EditError: another shape or dtype than the value's.
        """
        site = self.sites[name]
        old = self._taps.value(site)
        if role is None:
            given = self._given.pop(name, None)
            if given is not None and new is given and _is_models_own(site):
                self._given[name] = given  # as in-place operators do: it is in the model already
                return
            whole = as_named(site, fitting(site, new, as_named(site, old)))
        else:
            picked = self._picked(site, role)
            whole = old.clone()
            at = self._at(site, role, old)
            whole[at] = fitting(site, new, picked).reshape(old[at].shape)
        self._taps.write(site, old, whole)
        self._watched = [one for one in self._watched if one[1] is not new]
        self._given = {one: value for one, value in self._given.items() if self.sites[one].path != site.path}

    def check(self) -> None:
        """Raise EditError where a value was changed in place and that could change nothing in the model."""
        lost = [name for name, value, version in self._watched if value._version != version]
        if lost:
            raise EditError(
                f"{lost[0]} was changed in place, which changes nothing in the model",
                needed="an assignment",
                cause="the value is computed or picked from the model's own tensor",
                fix=f"read it, compute the new value, and assign it: model.{_spelled(lost[0])} = new",
            )

    def _picked(self, site: Site, role: Role) -> Tensor:
        value = self._taps.value(site)
        chosen = value[self._at(site, role, value)]
        counts = resolve(role, self._run).rows.bincount(minlength=len(self._run.items))
        regular = bool((counts == counts[0]).all())
        return chosen.unflatten(0, (len(counts), int(counts[0]))) if regular else chosen

    def _at(self, site: Site, role: Role, value: Tensor) -> Tensor:
        if site.vision:
            raise SiteError(
                f"the positions {role} at {site.name!r}", needed="a site of the language model",
                cause="in the vision tower rows are patches, not positions",
            )  # fmt: skip
        resolve(role, self._run)
        return slots(site, role.mask(self._run), value, self._run.steps)

    def _watch(self, name: str, value: Tensor) -> Tensor:
        self._watched.append((name, value, value._version))
        return value


class Place:
    """A part of a hook name: attributes lead to longer parts, and at a full name to the value there.

    Args:
        opened: gives the open trace, or says that there is none.
        prefix: the part so far, ``""`` at the model itself.
        role: read and write at these positions only.
    """

    __slots__ = ("_opened", "_prefix", "_role")

    def __init__(self, opened: Callable[[], OpenTrace], prefix: str = "", role: Role | None = None) -> None:
        for name, value in (("_opened", opened), ("_prefix", prefix), ("_role", role)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        full = self._joined(name)
        opened = self._opened()
        if canonical(full) in opened.sites:
            return opened.read(canonical(full), self._role)
        inner = re.sub(r"^blocks\.\d+\.", "", full)
        longer = any(one.startswith(f"{full}.") for one in opened.sites)
        if not longer and not any(one.startswith(f"{inner}.") for one in (*ALIASES, *WHOLE_ALIASES)):
            raise SiteError(f"the model has no {full!r}", needed="a hook name", fix="see model.hook_dict for all names")
        return Place(self._opened, full, self._role)

    def __setattr__(self, name: str, value: object) -> None:
        full, opened = canonical(self._joined(name)), self._opened()
        if full not in opened.sites:
            raise SiteError(f"the model has no {full!r}", needed="a hook name", fix="see model.hook_dict for all names")
        opened.write(full, self._role, value)

    def __getitem__(self, index: int) -> Any:
        names = self._opened().sites
        numbers = {
            int(one[len(self._prefix) + 1 :].split(".")[0]) for one in names if one.startswith(f"{self._prefix}.")
        }
        if index not in range(-len(numbers), len(numbers)):
            raise SiteError(f"{self._prefix}[{index}]", needed=f"a block from 0 to {len(numbers) - 1}")
        return Place(self._opened, f"{self._prefix}.{index % len(numbers)}", self._role)

    def _joined(self, name: str) -> str:
        return f"{self._prefix}.{name}" if self._prefix else name


class Named:
    """A descriptor for a name on the model itself: a value where the name is whole, else a `Place`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, model: NamedPlaces | None, owner: type) -> Any:
        if model is None:
            return self
        if self._name.startswith("hook_"):
            return getattr(Place(model.opened), self._name)
        return Place(model.opened, self._name)

    def __set__(self, model: NamedPlaces, value: object) -> None:
        if not self._name.startswith("hook_"):
            raise SiteError(f"an assignment to {self._name!r}", needed="a full hook name")
        setattr(Place(model.opened), self._name, value)


class NamedPlaces:
    """What has sites as attributes while a trace is open on it."""

    blocks, embed, ln_final, unembed, vision = Named(), Named(), Named(), Named(), Named()
    hook_embed, hook_latent, hook_latent_head = Named(), Named(), Named()
    hook_vision_embed, hook_vision_out, hook_vision_proj_in, hook_vision_proj_out = Named(), Named(), Named(), Named()

    def opened(self) -> OpenTrace:
        """The trace that is open.

        Raises:
            EditError: none is.
        """
        raise NotImplementedError

    def at(self, role: Role) -> Any:
        """The same names, read and written at the positions of a role only: ``model.at(latent[k]).blocks[2].hook_out``.

        A value is ``[batch, pos, ...]`` where every item has equally many such positions, else ``[n, ...]``. In a trace
        over whole sequences latent step k is the position ``latent[k]`` of each item, whenever the item came to it: no
        other step can be meant.
        """
        return Place(self.opened, "", role)


def _is_models_own(site: Site) -> bool:
    """Whether a value shares its memory with the model's own tensor, so that a change in place changes the model."""
    return not VIEWS[site.view].derived and site.view != "patches"


def _spelled(name: str) -> str:
    parts = name.split(".")
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).lstrip(".")
