"""Numbers inside an operation, frozen: compared and hashed by content, exact in JSON; knows no operation."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from prismlens.errors import EditError

LIMIT = 2**18
"""The most numbers that one value may hold (2 MB): an edit is a line in a manifest. More belongs in a `Source`."""
KEYS = {"shape", "float64"}


@dataclass(frozen=True)
class Values:
    """A vector or a matrix, in double precision, so that nothing is lost on the way through JSON.

    Args:
        shape: of the array.
        data: its numbers, little-endian, in C order.
    """

    shape: tuple[int, ...]
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, what: str, given: object, ndim: int) -> Values:
        """The numbers of a tensor, an array or nested lists.

        Args:
            what: how an error names them.
            given: the numbers; `Values` stay as they are.
            ndim: how many axes they must have.

        Raises:
            EditError: another number of axes, nothing at all, more than `LIMIT`, or a number that is not finite.
        """
        if isinstance(given, Values):
            array = given.array()
        else:
            plain = given.detach().cpu().double() if isinstance(given, Tensor) else given
            try:
                array = np.asarray(plain, dtype=np.float64)
            except (TypeError, ValueError):
                raise _refused(what, f"a {type(given).__name__}", ndim) from None
        if array.ndim != ndim or not 0 < array.size <= LIMIT:
            raise _refused(what, f"shape {array.shape}", ndim)
        if not np.isfinite(array).all():
            raise _refused(what, "numbers that are not finite", ndim)
        return cls(array.shape, (array + 0.0).astype("<f8").tobytes())  # + 0.0: -0 and 0 are the same edit

    def array(self) -> np.ndarray:
        """A copy of the numbers."""
        return np.frombuffer(self.data, dtype="<f8").astype(np.float64).reshape(self.shape)

    def like(self, tensor: Tensor) -> Tensor:
        """The numbers in the dtype and on the device of a tensor."""
        return torch.from_numpy(self.array()).to(tensor)

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of a hash of shape and numbers."""
        return hashlib.blake2b(repr(self.shape).encode() + self.data, digest_size=6).hexdigest()

    def to_record(self) -> dict[str, Any]:
        """The value as JSON can hold it: the shape, and the numbers' bytes in base 64."""
        return {"shape": list(self.shape), "float64": base64.b64encode(self.data).decode("ascii")}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Values:
        """What `to_record` wrote, or an EditError."""
        try:
            shape = tuple(int(size) for size in record["shape"])
            data = base64.b64decode(record["float64"], validate=True)
            array = np.frombuffer(data, dtype="<f8").reshape(shape)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise EditError(f"numbers that cannot be read ({error})", needed="what Edit.to_json wrote") from error
        return cls.of("numbers", array, len(shape))

    def __repr__(self) -> str:
        return f"<{' x '.join(map(str, self.shape))}: {self.digest}>"


Numbers: TypeAlias = Values | Tensor | np.ndarray | Sequence[float] | Sequence[Sequence[float]]
"""What an operation takes where it keeps `Values`."""


def frozen(given: Numbers) -> Values:
    """A field that the operation's constructor has turned into `Values`."""
    assert isinstance(given, Values)
    return given


def _refused(what: str, given: str, ndim: int) -> EditError:
    axes = {1: "one axis [d]", 2: "two axes [rank, d]"}.get(ndim, f"{ndim} axes")
    return EditError(
        f"{what} with {given}",
        needed=f"finite numbers on {axes}, 1 to {LIMIT} of them",
        fix="give a tensor, an array or a list; for many values use Patch with a Source",
    )
