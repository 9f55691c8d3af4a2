"""One forward of a model at a time: what would mix with a run that is under way is an error; knows no runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from weakref import WeakKeyDictionary

from torch import nn

from prismlens.errors import EditError


@dataclass(frozen=True)
class Holder:
    """Who is at it.

    Args:
        thread: its id.
        what: it is doing, in words.
        forward: a forward is open, so that nothing else may start in this thread either.
    """

    thread: int
    what: str
    forward: bool


_HOLDERS: WeakKeyDictionary[nn.Module, Holder] = WeakKeyDictionary()
_LOCK = Lock()


@contextmanager
def turn(hf: nn.Module, what: str, *, forward: bool = False) -> Iterator[None]:
    """While open, the model is this thread's, and no other run of it may start.

    Hooks and the choice of attention belong to the model, not to a run: a second run would fire the first one's hooks
    and leave its attention behind.

    Args:
        hf: the model.
        what: is going to be done, in words.
        forward: it is a single forward, which may be part of this thread's run.

    Raises:
        EditError: another thread is at it, or a run or trace starts inside an open one.
    """
    with _LOCK:
        before = _HOLDERS.get(hf)
        require_turn(hf, what, forward=forward)
        _HOLDERS[hf] = Holder(get_ident(), what, forward)
    try:
        yield
    finally:
        with _LOCK:
            if before is None:
                _HOLDERS.pop(hf, None)
            else:
                _HOLDERS[hf] = before


@contextmanager
def lent(hf: nn.Module) -> Iterator[None]:
    """While open, the turn that this thread has may be taken once more: by the run that a trace is around."""
    with _LOCK:
        holder = _HOLDERS.pop(hf)
    try:
        yield
    finally:
        with _LOCK:
            _HOLDERS[hf] = holder


def require_turn(hf: nn.Module, what: str, *, forward: bool = False) -> None:
    """Raise EditError where `turn` would."""
    holder = _HOLDERS.get(hf)
    if holder is None or (holder.thread == get_ident() and forward and not holder.forward):
        return
    if holder.thread != get_ident():
        raise EditError(
            f"{what} while another thread is in {holder.what} of the same model",
            needed="one thread at a time",
            cause="hooks and the choice of attention belong to the model, so that the two would mix",
            fix="wait for the other one, use a lock, or load one model for each thread",
        )
    raise EditError(
        f"{what} inside {holder.what} of the same model",
        needed="one after the other",
        cause="the block of a trace, and every hook, runs in the middle of a forward",
        fix="run it before, and use its results inside",
    )
