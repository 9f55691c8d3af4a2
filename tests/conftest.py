"""Shapes and types of every prismlens function are checked while the tests run."""

from collections.abc import Iterator

import beartype  # noqa: F401  (before nnsight, which puts `.save` on `object` and so breaks beartype's own import)
import pytest
from jaxtyping import config, install_import_hook

import tests.typecheck  # noqa: F401  (the hook finds the checker as an attribute of the package)

install_import_hook("prismlens", "tests.typecheck.checked")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Run-time type checks off, as they are in use: for tests of the errors that prismlens itself raises."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
