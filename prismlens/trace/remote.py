"""A trace as a server would run it, without a server: sent to bytes, read back, then run here; knows no sites."""

from __future__ import annotations

import sys
from typing import Any

from nnsight.intervention.backends.local import LocalSimulationBackend

from prismlens.errors import SettingError

OWN_ID = "PrismModel"
"""What a request says in place of the model. A server answers with the one it holds."""


class Simulation(LocalSimulationBackend):
    """nnsight's dry run of a remote trace, on a server that has prismlens installed.

    The block and all variables that it names are written to bytes and read back while modules that are not installed
    are out of reach; what a server could not rebuild fails here as it would there. Then the block runs on this model.

    Args:
        model: a PrismModel; the requests name it instead of carrying it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(_Held(model))
        vars(model)["_persistent_id"] = OWN_ID

    def _hide_local_modules(self) -> dict:
        hidden = super()._hide_local_modules()
        own = {name: module for name, module in hidden["modules"].items() if name.split(".")[0] == "prismlens"}
        sys.modules.update(own)
        return hidden


class _Held:
    """What a server holds: the model, its modules, and what runs them."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def _remoteable_persistent_objects(self) -> dict[str, Any]:
        wrapper = self._model.engine.wrapper
        modules = {f"Module:{envoy.path}": envoy._module for envoy in wrapper.modules()}
        return {OWN_ID: self._model, "Interleaver": wrapper.interleaver, **modules}


def backend_of(remote: str | bool | None, model: Any, mode: str) -> Simulation | None:
    """What runs a trace's block; None is the ordinary way.

    Raises:
        SettingError: a server, or a free trace through bytes.
    """
    if remote is None or remote is False:
        return None
    if remote != "local":
        raise SettingError(
            f"remote = {remote!r}",
            needed="'local', which runs a trace through bytes on this machine",
            cause="a server has to hold a model with a latent loop, and none that nnsight knows does",
            fix="see docs/how-to/remote.md for what such a server needs",
        )
    if mode != "held":
        raise SettingError(
            f"remote = 'local' with mode = {mode!r}", needed="mode = 'held'",
            cause="the latent loop of a free run is a local function, which is not sent",
        )  # fmt: skip
    return Simulation(model)
