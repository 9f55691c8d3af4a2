"""What can be done at a site in an open trace: change, call, read, watch the gradient; knows no forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from prismlens.errors import EditError
from prismlens.sites import LATENT, Site

Change = Callable[[Tensor, Bool[Tensor, "batch query"]], Tensor]
"""New values of the selected positions: ``(values [n, d], mask of the forward's columns) -> [n, d]``."""


@dataclass(frozen=True, eq=False)
class Write:
    """A change to make at a site, where the mask of this forward's columns is True.

    The axes after the positions are one to `change` (``[n, head * d_head]`` at queries), so that an operation on
    vectors serves every site; see `Call` for the value as it is.
    """

    site: Site
    mask: Bool[Tensor, "batch query"]
    change: Change


@dataclass(frozen=True, eq=False)
class Call:
    """A function to call with a site's value in its own shape; a tensor that it returns takes the value's place.

    Args:
        site: where.
        function: gets a copy, which it may change in place; None from it means that copy.
        mask: the columns whose values it gets, ``[n, ...]``; None is the whole value with the axes of the site.
    """

    site: Site
    function: Callable[[Tensor], Tensor | None]
    mask: Bool[Tensor, "batch query"] | None = None


@dataclass(frozen=True, eq=False)
class Read:
    """Values to keep from a site, where the mask of this forward's columns is True; all rows in the vision tower.

    With `gradient` the value is one that the rest of the forward is computed from, kept whole in `Traced.roots`. Of a
    site with queries and keys only `heads` are kept; None is all of them.
    """

    site: Site
    mask: Bool[Tensor, "batch query"]
    gradient: bool = False
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Backward:
    """A function to call with the gradient of a site's whole value, once it is computed; it may return another one."""

    site: Site
    function: Callable[[Tensor], Tensor | None]


Act = Write | Call


def written(value: Tensor, write: Write, index: object) -> Tensor:
    """`value`, which stays as it is, with the selected rows replaced."""
    at = slots(write.site, write.mask, value, index)
    old = value[at]
    flat = old.flatten(1)
    new = fitting(write.site, write.change(flat, write.mask), flat)
    out = value.clone()
    out[at] = new.reshape(old.shape)
    return out


def called(value: Tensor, call: Call, index: object) -> Tensor | None:
    """`value`, which stays as it is, as the function leaves it; None where the function only looked."""
    at = None if call.mask is None else slots(call.site, call.mask, value, index)
    given = (as_named(call.site, value) if at is None else value[at]).clone()
    version = given._version
    new = call.function(given)
    if new is None and given._version == version:
        return None
    new = given if new is None else fitting(call.site, new, given)
    if at is None:
        return as_named(call.site, new)
    out = value.clone()
    out[at] = new
    return out


def as_named(site: Site, value: Tensor) -> Tensor:
    """From positions on the second axis to the axes that the site's name promises, and back."""
    return value.transpose(1, 2) if site.view == "queries" else value


def in_named_axes(site: Site, backward: Backward) -> Callable[[Tensor], Tensor | None]:
    """The function for a tensor's gradient, in the site's own axes."""

    def function(gradient: Tensor) -> Tensor | None:
        given = as_named(site, gradient).clone()
        new = backward.function(given)
        return as_named(site, given if new is None else fitting(replace(site, name=f"{site.name}_grad"), new, given))

    return function


def fitting(site: Site, new: object, old: Tensor) -> Tensor:
    """The new value, or an EditError where its shape, dtype or device is another than the old one's."""
    if not isinstance(new, Tensor):
        given = f"a {type(new).__name__}"
    elif (new.shape, new.dtype, new.device) == (old.shape, old.dtype, old.device):
        return new
    else:
        given = f"{tuple(new.shape)} {new.dtype} on {new.device}"
    raise EditError(
        f"a change at {site.name} returned {given}",
        needed=f"{tuple(old.shape)} {old.dtype} on {old.device}, as it was given",
    )


def slots(site: Site, mask: Bool[Tensor, "batch query"], value: Tensor, index: object) -> Bool[Tensor, "batch column"]:
    """The mask over the value's own second axis: columns everywhere, but latent slots at the latent site."""
    if site.name != LATENT:
        return mask
    assert isinstance(index, Tensor)
    out = torch.zeros(value.shape[:2], dtype=torch.bool, device=value.device)
    rows, columns = (mask & (index >= 0)).nonzero(as_tuple=True)
    out[rows, index[rows, columns]] = True
    return out
