"""The table of sites: names, order, short forms and the errors that name the closest."""

import pytest

from prismlens.errors import SiteError
from prismlens.sites import expand, get_act_name, site, site_names
from prismlens.trace.names import matching_names
from tests.plain_hooks import EVERY, LAYERS, NAMES, module_of, twins


def test_every_site_stands_for_the_module_and_end_that_its_name_promises():
    pair = twins()
    assert list(site_names(LAYERS)) == NAMES and list(site_names(LAYERS, every=True)) == EVERY
    for name in EVERY:
        place = site(name, LAYERS)
        module, end, _ = module_of(pair.plain, name)
        assert pair.plain.get_submodule(place.path) is module
        assert {"input": "input", "output": "output", "shared": "input in place"}[place.end] == end
        assert place.name == name


def test_sites_sort_as_a_forward_reaches_them():
    places = [site(name, 12) for name in site_names(12)]
    assert places == sorted(places, key=lambda place: place.order)
    assert len({place.order for place in places}) == len(places)


def test_a_group_stands_for_its_sites_at_every_layer():
    assert [place.name for place in expand("kv", 2)] == [
        "blocks.0.attn.hook_k", "blocks.0.attn.hook_v", "blocks.1.attn.hook_k", "blocks.1.attn.hook_v",
    ]  # fmt: skip
    assert [place.name for place in expand("hook_latent", 2)] == ["hook_latent"]


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("blocks.1.hook_residpost", "'blocks.1.hook_resid_post'"),
        ("hook_latents", "'hook_latent'"),
        ("blocks.0.attn.hook_patern", "'blocks.0.attn.hook_pattern'"),
        ("blocks.-1.hook_resid_pre", "'blocks.1.hook_resid_pre'"),
        ("blocks.01.hook_resid_pre", "'blocks.1.hook_resid_pre'"),
        ("ln_final", "'ln_final.hook_"),
        ("", "'"),
    ],
)
def test_an_unknown_site_is_refused_with_the_closest_names(name: str, closest: str):
    with pytest.raises(SiteError) as caught:
        site(name, 3)
    assert f"no site is called {name!r}" in str(caught.value) and closest in str(caught.value)


def test_a_layer_that_the_model_lacks_is_refused_with_those_it_has():
    with pytest.raises(SiteError, match=r"names layer 3\n.*a layer from 0 to 2: the model has 3"):
        site("blocks.3.hook_resid_post", 3)


@pytest.mark.parametrize(
    ("short", "layer", "full"),
    [
        ("resid_post", 5, "blocks.5.hook_resid_post"),
        ("hook_resid_post", 0, "blocks.0.hook_resid_post"),
        ("k", 2, "blocks.2.attn.hook_k"),
        ("hook_latent", None, "hook_latent"),
        ("pattern", 3, "blocks.3.attn.hook_pattern"),
        ("attn", 3, "blocks.3.attn.hook_pattern"),
        ("k6", None, "blocks.6.attn.hook_k"),
        ("resid_post0", None, "blocks.0.hook_resid_post"),
        ("scale4ln1", None, "blocks.4.ln1.hook_scale"),
        ("scale", None, "ln_final.hook_scale"),
        ("embed", None, "hook_embed"),
        ("hook_out", 2, "blocks.2.hook_resid_post"),
    ],
)
def test_short_names_are_those_of_transformerlens(short: str, layer: int | None, full: str):
    assert get_act_name(short, layer) == full


def test_an_unknown_short_name_lists_the_known_ones():
    with pytest.raises(
        SiteError, match=r"no activation is called 'resid'\n.*resid_pre, attn_in, scale, normalized, q, k, v, rot_q"
    ):
        get_act_name("resid", 1)


EVERY_POST = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]


@pytest.mark.parametrize(
    ("names_filter", "names"),
    [
        (None, NAMES),
        ("resid_post", EVERY_POST),
        ("hook_resid_post", EVERY_POST),
        ("blocks.1.attn.hook_k", ["blocks.1.attn.hook_k"]),
        ("k", [f"blocks.{layer}.attn.hook_k" for layer in range(3)]),
        (["ln_final.hook_normalized", "blocks.0.mlp.hook_out", "hook_latent"],
         ["hook_latent", "blocks.0.hook_mlp_out", "ln_final.hook_normalized"]),
        (["resid_post", "blocks.1.hook_resid_post"], EVERY_POST),
        (lambda name: name.endswith("resid_post"), EVERY_POST),
    ],
)  # fmt: skip
def test_a_names_filter_lets_through_what_it_names_in_forward_order(names_filter, names: list[str]):
    assert matching_names(names_filter, 3) == names


@pytest.mark.parametrize(
    ("names_filter", "text"),
    [
        ("resid_pots", "names_filter asks for 'resid_pots'"),
        (["resid_post", "blocks.9.hook_resid_post"], "asks for 'blocks.9.hook_resid_post'"),
        ([], "lets nothing through"),
        (lambda name: False, "lets nothing through"),
    ],
)
def test_a_filter_that_matches_nothing_is_an_error(names_filter, text: str):
    with pytest.raises(SiteError, match=text):
        matching_names(names_filter, 3)
