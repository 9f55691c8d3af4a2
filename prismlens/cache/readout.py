"""The weights with which activations are decomposed and read out; holds them by reference and knows no model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from prismlens.errors import SiteError


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """One block's part: its first norm, and the two matrices that write to the residual stream.

    Args:
        ln1: weight of the RMSNorm before attention, as it multiplies.
        W_O: from each head's value ``z`` to the stream; None in a cache that was loaded from files.
        b_O: bias of the attention's output; None where there is none.
        W_out: from the MLP's neurons to the stream; None in a cache that was loaded from files.
        b_out: bias of the MLP's output; None where there is none.
    """

    ln1: Float[Tensor, " d_model"]
    W_O: Float[Tensor, "head d_head d_model"] | None = None
    b_O: Float[Tensor, " d_model"] | None = None
    W_out: Float[Tensor, "d_mlp d_model"] | None = None
    b_out: Float[Tensor, " d_model"] | None = None


@dataclass(frozen=True, eq=False)
class Readout:
    """What a cache needs to know of the model: RMSNorms, the matrices that write to the stream, the unembedding.

    The tensors are the model's own, so a change of its weights changes what a cache computes from now on.

    Args:
        blocks: in order.
        ln_final: weight of the final RMSNorm, as it multiplies.
        eps: that the norms add to the mean square.
        W_U: the unembedding; None in a cache that was loaded from files.
        b_U: its bias; None where there is none. It belongs to no part of the stream.
        weights: hash of the model's weights, "" where it is not known.
    """

    blocks: tuple[BlockWeights, ...]
    ln_final: Float[Tensor, " d_model"]
    eps: float
    W_U: Float[Tensor, "d_model d_vocab"] | None = None
    b_U: Float[Tensor, " d_vocab"] | None = None
    weights: str = ""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def norm_weight(self, layer: int) -> Float[Tensor, " d_model"]:
        """Weight of the norm that reads the stream before a block, or of the final norm for the number of blocks."""
        return self.ln_final if layer == self.n_layers else self.blocks[layer].ln1

    def only_norms(self) -> Readout:
        """Without the large matrices: what is stored in files."""
        return replace(self, blocks=tuple(BlockWeights(block.ln1) for block in self.blocks), W_U=None, b_U=None)

    def matrix(self, name: str, block: int | None = None) -> Tensor:
        """``W_U``, or a block's ``W_O`` or ``W_out``.

        Raises:
            SiteError: this readout came from files, without them.
        """
        found = getattr(self if block is None else self.blocks[block], name)
        if found is None:
            raise SiteError(
                f"the cache has no {name}",
                needed="the model's own matrices",
                cause="it was read from files, which hold activations and norms only",
                fix="cache = cache.with_readout(model.readout)",
            )
        return found
