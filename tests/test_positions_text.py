"""The text of roles: what a user writes, and the errors for what is not a role."""

from __future__ import annotations

import pytest

from prismlens.errors import RoleError
from prismlens.positions import answer, between, image, latent, lead, parse


def test_text_is_what_a_user_writes() -> None:
    assert str(latent[-1] | answer.source) == "latent[-1] | answer.source"
    assert str((latent | answer) & ~image.box - lead) == "(latent | answer) & ~image.box - lead"
    assert str(latent - (latent - latent[0])) == "latent - (latent - latent[0])"
    assert repr(latent[1:]) == "latent[1:]"
    assert str(latent.stage("target")) == "latent.stage('target')"
    assert str(latent.stage("target").source[-1]) == "latent.stage('target').source[-1]"
    assert parse('~latent.stage("a").end | between') == ~latent.stage("a").end | between


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latents", r"unknown role 'latents'(.|\n)*closest: latent(,|\n)"),
        ("answer.frist", r"unknown role 'answer.frist'(.|\n)*closest: answer.first, "),
        ("latent + answer", "cannot read latent \\+ answer"),
        ("latent[", "is not a role"),
        ("latent['a']", "cannot read 'a'"),
        ("latent[True]", "cannot read True"),
        ("latent[::0]", "a step other than 0"),
        ("__import__('os').getcwd()", "cannot read"),
        ("", "is not a role"),
        ("-latent", "cannot read -latent"),
        ("latent.stage('a').first", r"cannot read latent\.stage\('a'\)\.first"),
        ("answer.stage('a').end", r"cannot read answer\.stage\('a'\)"),
    ],
)
def test_unreadable_text_is_an_error(text: str, message: str) -> None:
    with pytest.raises(RoleError, match=message):
        parse(text)


def test_an_unknown_name_comes_with_three_close_ones() -> None:
    with pytest.raises(RoleError) as caught:
        parse("questoin[-1]")
    closest = caught.value.fix.removeprefix("closest: ").split(", ")
    assert closest[0] == "question"
    assert len(closest) == 3
