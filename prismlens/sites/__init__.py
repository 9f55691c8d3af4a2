"""Places in the network by their TransformerLens names, and the module behind each; knows no values and no edits."""

from prismlens.sites.names import (
    axes,
    canonical,
    closest,
    expand,
    get_act_name,
    inner_name,
    refuse_headless,
    site,
    site_names,
)
from prismlens.sites.site import Site
from prismlens.sites.table import GROUPS, HEAD, LATENT, LOGITS, PER_LAYER, UNEMBED_IN

__all__ = [
    "GROUPS",
    "HEAD",
    "LATENT",
    "LOGITS",
    "PER_LAYER",
    "UNEMBED_IN",
    "Site",
    "axes",
    "canonical",
    "closest",
    "expand",
    "get_act_name",
    "inner_name",
    "refuse_headless",
    "site",
    "site_names",
]
