"""The bar of a sweep: what is done, at which rate, and the time left; does not know what is counted."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from tqdm.auto import tqdm


@dataclass(eq=False)
class Progress:
    """A bar that may be shown or not; a context manager.

    Args:
        total: how much there is to do.
        name: what stands before the bar.
        shown: whether it is shown.
        done: how much is done.
    """

    total: int
    name: str = ""
    shown: bool = False
    done: int = 0

    def __post_init__(self) -> None:
        self._bar = tqdm(total=self.total, desc=self.name, unit="run") if self.shown else None

    def add(self, count: int) -> None:
        """So much more has been done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)

    def found(self, count: int) -> None:
        """So much was done before: it counts for neither the rate nor the time left."""
        self.done += count
        if self._bar is not None:
            self._bar.initial += count
            self._bar.n += count
            self._bar.refresh()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
