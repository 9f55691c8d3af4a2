"""What activations add up to: the residual stream in parts, and each part's share of a logit; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from prismlens.cache import decomposition as parts_of
from prismlens.cache.activations import Activations
from prismlens.cache.attribution import normed, rms_scale, token_ids
from prismlens.cache.decomposition import Part
from prismlens.cache.folder import opened, shard_name, write_manifest, write_shard
from prismlens.cache.selection import PosSlice
from prismlens.cache.writing import whole_folder
from prismlens.errors import SettingError, SiteError
from prismlens.sites import get_act_name

Stack = Tensor | tuple[Tensor, list[str]]
"""Components first, then as a value of the cache: ``[component, batch, pos, d_model]``; with labels on request."""


@dataclass(frozen=True, eq=False)
class ActivationCache(Activations):
    """Activations with TransformerLens' decompositions; values are read as in `Activations`.

    In every method `layer` is exclusive, and None and -1 mean the end, after the last block. `pos_slice` counts each
    item's own selected positions; an integer drops the axis. Parts add up because every norm is an RMSNorm, which is
    linear once its scale is given, and that is the whole stream's at the position.
    """

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        *,
        return_labels: bool = False,
    ) -> Stack:
        """The residual stream before every block up to `layer` (and, on request, between attention and MLP).

        Labels: ``0_pre, 0_mid, 1_pre, ..., final_post``. With `apply_ln` each is divided by the scale of the stream at
        `layer`, as in TransformerLens, and not by its own.
        """
        end, part = self.end(layer), self._sliced(pos_slice)
        named = parts_of.accumulated(end, self._weights.n_layers, incl_mid=incl_mid)
        return part._stack(part._read(named), end, apply_ln, pos_slice, return_labels)

    def decompose_resid(
        self,
        layer: int | None = None,
        *,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack:
        """What entered the stream (``embed``: token, image feature or latent) and what each block before `layer` wrote.

        Labels: ``embed, 0_attn_out, 0_mlp_out, 1_attn_out, ...``; biases are inside these. With mode ``"all"`` and the
        embeddings the sum is the residual stream. Where the stream at `layer` is in the cache that is checked, and what
        is missing becomes a last component ``remainder``: what an edit or the architecture wrote between the blocks.

        Raises:
            SiteError: the cache lacks a site; or an edit wrote to the stream, which is not in the cache.
            SettingError: another mode than ``"all"``, ``"attn"``, ``"mlp"``.
        """
        end, part = self.end(layer), self._sliced(pos_slice)
        parts = part._read(parts_of.written(end, mode, incl_embeds=incl_embeds))
        if mode == "all" and incl_embeds:
            parts += part._remainder(end, parts)
        return part._stack(parts, end, apply_ln, pos_slice, return_labels)

    def stack_activation(self, name: str, layer: int | None = None) -> Tensor:
        """One activation of every block before `layer`: ``[layer, batch, pos, ...]``."""
        names = [get_act_name(name, block) for block in range(self.end(layer))]
        self.require(names)
        return torch.stack([self[one] for one in names])

    def stack_head_results(
        self,
        layer: int | None = None,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        *,
        return_labels: bool = False,
    ) -> Stack:
        """What every head of the blocks before `layer` writes, from ``attn.hook_result`` or ``attn.hook_z``.

        Labels: ``L0H0, L0H1, ...``, and ``bias`` (the sum of the attention outputs' biases) where the model has any.
        Where every ``attn_out`` is in the cache the sum is checked against theirs, with a ``remainder`` where an edit
        of ``hook_attn_out`` makes one.
        """
        end, part = self.end(layer), self._sliced(pos_slice)
        parts = [*part._heads(end), *part._biases(end, of_neurons=False)]
        outputs = [f"blocks.{block}.hook_attn_out" for block in range(end)]
        if outputs and all(name in self for name in outputs):
            total = torch.stack([part.flat(name) for name in outputs]).sum(0)
            parts += parts_of.missing(total, parts)
        return part._stack(parts, end, apply_ln, pos_slice, return_labels)

    def stack_neuron_results(
        self,
        layer: int | None = None,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        *,
        return_labels: bool = False,
    ) -> Stack:
        """What every MLP neuron of the blocks before `layer` writes; labels ``L0N0, L0N1, ...``.

        One vector a neuron and position: choose few positions.
        """
        end, part = self.end(layer), self._sliced(pos_slice)
        return part._stack(part._neurons(end), end, apply_ln, pos_slice, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        *,
        return_labels: bool = False,
    ) -> Stack:
        """The stream at `layer` as heads, neurons (or whole MLPs), ``embed``, ``bias`` and perhaps ``remainder``."""
        end, part = self.end(layer), self._sliced(pos_slice)
        whole_mlps = parts_of.written(end, "mlp", incl_embeds=False)
        parts = [*part._heads(end), *(part._neurons(end) if expand_neurons else part._read(whole_mlps))]
        parts += part._read([(parts_of.EMBED, parts_of.ENTRY)])
        parts += part._biases(end, of_neurons=expand_neurons)
        parts += part._remainder(end, parts)
        return part._stack(parts, end, apply_ln, pos_slice, return_labels)

    def apply_ln_to_stack(self, stack: Tensor, layer: int | None = None, pos_slice: PosSlice = None) -> Tensor:
        """Parts of the stream as the norm at `layer` would pass them on: ``x / scale * weight``, so they still add up.

        The scale is that of the whole stream at each position: the cached ``hook_scale``, or computed from the cached
        stream. Half precision is raised to float32.

        Args:
            stack: ``[component, ...]``, made with the same `pos_slice`.
            layer: the block whose first norm is meant; the final norm by default.
            pos_slice: with which the stack was made.
        """
        end, part = self.end(layer), self._sliced(pos_slice)
        scale = part._shaped(part._scale(end), part.positions.rows, pos_slice=pos_slice)
        return normed(stack, scale, self._weights.norm_weight(end))

    def logit_attrs(
        self,
        stack: Tensor,
        tokens: int | Tensor,
        incorrect_tokens: int | Tensor | None = None,
        pos_slice: PosSlice = None,
    ) -> Tensor:
        """Each part's share of a token's logit, or of a difference of two: ``[component, batch, pos]``.

        The final norm is applied here; give the stack without it. A decomposition's shares sum to the logit (less the
        unembedding's bias, where a model has one). The logits at a position are about the token after it: the answer's
        first letter is predicted at ``answer.source``.

        Args:
            stack: ``[component, batch, pos, d_model]`` up to the last block.
            tokens: one id for all, one an item ``[batch]``, or one a position ``[batch, pos]``.
            incorrect_tokens: ids whose logit is taken away, in any of the same forms.
            pos_slice: with which the stack was made.

        Raises:
            SettingError: text instead of ids, ids outside the vocabulary, or a stack of other positions.
        """
        part = self._sliced(pos_slice)
        scaled = self.apply_ln_to_stack(stack, None, pos_slice)
        direction = part._direction(tokens, pos_slice)
        if incorrect_tokens is not None:
            direction = direction - part._direction(incorrect_tokens, pos_slice)
        return (scaled * direction.to(scaled.device, scaled.dtype)).sum(-1)

    def save(self, folder: str | Path) -> Path:
        """Write everything but the model's matrices and the images into a new folder, all or nothing.

        Raises:
            ResultsError: the path holds anything, the disk refuses, or a value cannot be stored.
        """
        target = Path(folder).expanduser().resolve()
        with whole_folder(target) as draft:
            shard = write_shard(draft / shard_name(0), self)
            write_manifest(
                draft, [shard], manifest=self.manifest, readout=self.readout, edited=self.edited,
                has_batch_dim=self.has_batch_dim,
            )  # fmt: skip
        return target

    @staticmethod
    def load(folder: str | Path) -> ActivationCache:
        """Read a saved folder back into memory, every byte checked; see `open_cache` for what does not fit there.

        Raises:
            ResultsError: a file is missing or was changed since it was saved.
        """
        cache = open_cache(folder)
        return replace(cache, values_by_name={name: cache.flat(name) for name in cache})

    def _read(self, named: Sequence[tuple[str, str]]) -> list[Part]:
        """A part for each ``(label, hook name)``."""
        self.require([name for _, name in named])
        return [([label], self.flat(name)[None]) for label, name in named]

    def _heads(self, end: int) -> list[Part]:
        names = [(f"blocks.{block}.attn.hook_result", f"blocks.{block}.attn.hook_z") for block in range(end)]
        self.require([z for result, z in names if result not in self])
        return parts_of.heads(self.flat, self.__contains__, end, self._weights)

    def _neurons(self, end: int) -> list[Part]:
        self.require([f"blocks.{block}.mlp.hook_post" for block in range(end)])
        return parts_of.neurons(self.flat, end, self._weights)

    def _biases(self, end: int, *, of_neurons: bool) -> list[Part]:
        return parts_of.biases(self._weights, end, self.positions.rows, of_heads=True, of_neurons=of_neurons)

    def _remainder(self, end: int, parts: Sequence[Part]) -> list[Part]:
        """What the parts lack of the stream at a layer, where the cache holds the stream; else they must be whole."""
        name = parts_of.stream_name(end, self._weights.n_layers)
        if name in self:
            return parts_of.missing(self.flat(name), parts)
        written = [site for site in self.edited if parts_of.writes_to_stream(site, end)]
        if written:
            raise SiteError(
                f"an edit wrote to {written[0]!r}, and the cache does not hold {name!r}",
                needed="the stream itself, so that what the edit added can be told apart",
                fix=f"run again with {name!r} in names_filter",
            )
        return []

    def _scale(self, end: int) -> Float[Tensor, "n 1"]:
        """The scale of the norm that reads the stream at a layer."""
        n_layers = self._weights.n_layers
        name = "ln_final.hook_scale" if end == n_layers else f"blocks.{end}.ln1.hook_scale"
        if name in self:
            return self.flat(name)
        stream = parts_of.stream_name(end, n_layers)
        self.require([stream])
        return rms_scale(self.flat(stream), self._weights.eps)

    def _stack(
        self, parts: Sequence[Part], end: int, apply_ln: bool, pos_slice: PosSlice, return_labels: bool
    ) -> Stack:
        """The parts as one tensor in the shape of the cache; `self` is sliced already."""
        if not parts:
            raise SettingError(
                f"a stack up to layer {end} without embeddings has no components", needed="a later layer"
            )
        stack = torch.cat([values for _, values in parts])
        if apply_ln:
            stack = normed(stack, self._scale(end), self._weights.norm_weight(end))
        out = self._shaped(stack, self.positions.rows, axis=1, pos_slice=pos_slice)
        return (out, [label for labels, _ in parts for label in labels]) if return_labels else out

    def _direction(self, tokens: int | Tensor, pos_slice: PosSlice) -> Tensor:
        """The unembedding's column of the token meant at each position, in the shape of the cache."""
        W_U, rows = self._weights.matrix("W_U"), self.positions.rows
        shape = tuple(self._shaped(rows, rows, pos_slice=pos_slice).shape)
        ids = token_ids(tokens, rows, self._batch, shape, W_U.shape[1])
        columns = W_U[:, ids.to(W_U.device)].T
        wide = columns.to(torch.promote_types(columns.dtype, torch.float32))
        return self._shaped(wide, rows, pos_slice=pos_slice)


def open_cache(folder: str | Path) -> ActivationCache:
    """A saved folder as a cache whose activations are read, and their bytes checked, when they are asked for.

    ``cache[name]`` reads that activation of all shards; keep the result where it is needed twice.

    Raises:
        ResultsError: a file is missing or was changed; for an activation, when it is first read.
    """
    return ActivationCache(**opened(Path(folder).expanduser().resolve()))
