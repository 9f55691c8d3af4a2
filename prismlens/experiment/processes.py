"""How many processes share a sweep, and waiting for each other; the only place here that knows of accelerate."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from prismlens.errors import SettingError


@dataclass(frozen=True)
class Processes:
    """This process's number, and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what belongs to all."""
        return self.rank == 0

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def launched() -> Processes:
    """The processes that `accelerate launch` started; one where it started none.

    Raises:
        SettingError: there are several, and accelerate is not installed, or does not connect them.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise SettingError(
            f"{world} processes without the library accelerate",
            needed="accelerate, through which they wait for each other",
            fix="pip install 'prismlens[train]'",
        ) from error
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes != world:
        raise SettingError(
            f"{world} processes were started and accelerate knows of {state.num_processes}",
            needed="processes that can wait for each other",
            cause="accelerate was set up earlier in this process, for one alone",
            fix="start with `accelerate launch --multi_gpu --num_processes N` (on a machine without GPUs too)",
        )
    return Processes(state.process_index, state.num_processes)
