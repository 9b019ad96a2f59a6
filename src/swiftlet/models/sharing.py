"""Attention over samples whose equal beginnings are computed once: rows are spread to tokens for it and brought back.

Everything else in a packable model works on each token alone, so it works on the rows. The gradient of a row is the
sum over its tokens, in the same order every time. What attention keeps for its backward pass is kept of rows: so a
micro-batch takes the memory of its rows, however many tokens they stand for.

Shapes: T tokens of a micro-batch, U rows, P rows that stand for C tokens or fewer, F numbers of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from swiftlet.device.kernels import AttentionRules, PackedAttention
from swiftlet.device.transfer import send
from swiftlet.models.arena import empty
from swiftlet.models.attention import segment_attention

# The memory of a token beside that of a row: while attention works, about ten vectors of one layer. A row has fourteen
# in each of two dozen layers, or one in each where layers are computed again.
TOKEN_COST, TOKEN_COST_RECOMPUTED = 1 / 16, 1 / 4


class Spread(Protocol):
    """What data/prefixes.py finds; the rooms are siblings."""

    source_T: np.ndarray
    first_U: np.ndarray
    copies: tuple[np.ndarray, ...]

    def _replace(self, *, source_T: np.ndarray, first_U: np.ndarray) -> Spread: ...


class PackedInputs(NamedTuple):
    """What a pass reads: tokens (or the rows that stand for them), boundaries of the samples, and their attention."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    cu_seqlens: list[int]
    attention: PackedAttention | None


class Sum(NamedTuple):
    """Rows as sums over their tokens: which tokens [P C], and 1 where there is one [P, 1, C]."""

    tokens: Tensor
    is_there: Tensor


class Sharing(NamedTuple):
    """The tokens and rows of a micro-batch on a device.

    Args:
        source_T: the row of each token.
        first_U: the first token of each row.
        place_T: the row of each token that is the first of its row, U for the others.
        sums: how the first rows are summed.
    """

    source_T: Tensor
    first_U: Tensor
    place_T: Tensor
    sums: list[Sum]

    @classmethod
    def of(cls, prefixes: Spread, device: torch.device) -> Sharing:
        """Return the sharing on `device`; nothing waits for it."""
        place_T = np.full(len(prefixes.source_T), len(prefixes.first_U))
        place_T[prefixes.first_U] = np.arange(len(prefixes.first_U))

        def put(array: np.ndarray) -> Tensor:
            return send(torch.from_numpy(np.ascontiguousarray(array)), device)

        sums = [
            Sum(put(copies_PC.clip(0).reshape(-1)), put((copies_PC >= 0).astype(np.float32)[:, None]))
            for copies_PC in prefixes.copies
        ]
        return cls(put(prefixes.source_T), put(prefixes.first_U), put(place_T), sums)

    def sum_to_rows(self, grad_TF: Tensor) -> Tensor:
        """Return the sum over the tokens of each row [U, F]."""
        parts = [_summed(grad_TF, one) for one in self.sums]
        num_summed = sum(len(part) for part in parts)
        return torch.cat([*parts, grad_TF.index_select(0, self.first_U[num_summed:])])

    def first_to_rows(self, grad_TF: Tensor) -> Tensor:
        """Return the first token of each row [U, F]."""
        return _select(grad_TF, self.first_U)

    def rows_to_first(self, grad_UF: Tensor) -> Tensor:
        """Return [T, F] with each row at its first token, and 0 elsewhere."""
        none_1F = grad_UF.new_zeros((1, grad_UF.shape[1]))
        return _select(torch.cat([grad_UF, none_1F]), self.place_T)


class _Select(torch.autograd.Function):
    """The tokens or rows at `index`; `back` says what their gradient is before it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return _select(x, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.back(grad), None, None


def _select(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of x [., F] at `index`."""
    return torch.index_select(x, 0, index, out=empty((len(index), x.shape[1]), x))


def _summed(grad_TF: Tensor, rows: Sum) -> Tensor:
    num_rows, _, num_copies = rows.is_there.shape
    copies_PCF = _select(grad_TF, rows.tokens).view(num_rows, num_copies, -1)
    return torch.bmm(rows.is_there.to(grad_TF.dtype), copies_PCF).squeeze(1)


class _Saved:
    """A tensor saved for a backward pass: itself, or the rows that it is made of again and how it views its tokens."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor
        self.view = (tensor.shape, tensor.stride(), tensor.storage_offset())
        self.rows_UF: Tensor | None = None
        self.version = 0


class _Again(saved_tensors_hooks):
    """Within it, what attention saves of tokens is held as rows, and spread again in the backward pass."""

    def __init__(self, source_T: Tensor) -> None:
        self.source_T = source_T
        self.saved: list[_Saved] = []
        super().__init__(self.pack, self.unpack)

    def pack(self, tensor: Tensor) -> _Saved:
        self.saved.append(_Saved(tensor))
        return self.saved[-1]

    def unpack(self, saved: _Saved) -> Tensor:
        if saved.rows_UF is None:
            assert saved.tensor is not None
            return saved.tensor
        if saved.rows_UF._version != saved.version:
            raise RuntimeError(
                "the output of attention was changed in place: its backward pass would be wrong"
            )
        return _select(saved.rows_UF, self.source_T).as_strided(*saved.view)

    def hold(self, sources: list[tuple[Tensor, Tensor]]) -> None:
        """Hold rows [U, F] instead of what was saved of their contiguous tokens [T, F]."""
        for saved in self.saved:
            for tokens_TF, rows_UF in sources:
                if saved.tensor is not None and _is_of(saved.tensor, tokens_TF):
                    saved.tensor, saved.rows_UF, saved.version = None, rows_UF, rows_UF._version
        self.saved = []


def _is_of(tensor: Tensor, whole: Tensor) -> bool:
    """Return whether a tensor views the memory of `whole`, which has no other."""
    storages = tensor.untyped_storage(), whole.untyped_storage()
    is_same = storages[0].data_ptr() == storages[1].data_ptr() and tensor.dtype == whole.dtype
    return is_same and storages[1].nbytes() == whole.numel() * whole.element_size()


def shared_attention(attend: PackedAttention, sharing: Sharing, *, is_held: bool = True) -> PackedAttention:
    """Return `attend` for queries, keys and values [heads, U, D]: its output is [U, Q, D].

    Args:
        is_held: something is kept for the backward pass, then of rows only; False where layers are computed again.
    """

    def attention(
        query_QUD: Tensor, key_KUD: Tensor, value_KUD: Tensor, cu_seqlens: list[int], rules: AttentionRules
    ) -> Tensor:
        # nothing reads what a row's other tokens ask for, so their queries have no gradient
        backs = sharing.first_to_rows, sharing.sum_to_rows, sharing.sum_to_rows
        heads = query_QUD, key_KUD, value_KUD
        rows = [tensor.transpose(0, 1).flatten(1) for tensor in heads]
        tokens = [
            _Select.apply(rows_UF, sharing.source_T, back) for rows_UF, back in zip(rows, backs, strict=True)
        ]
        query_QTD, key_KTD, value_KTD = (
            tokens_TF.view(-1, tensor.shape[0], tensor.shape[2]).transpose(0, 1)
            for tokens_TF, tensor in zip(tokens, heads, strict=True)
        )
        again = _Again(sharing.source_T)
        with again if is_held else nullcontext():
            output_TQD = attend(query_QTD, key_KTD, value_KTD, cu_seqlens, rules)
        output_TF = output_TQD.flatten(1)
        output_UF = _Select.apply(output_TF, sharing.first_U, sharing.rows_to_first)
        tokens, rows = [*tokens, output_TF], [*rows, output_UF]
        again.hold([(one.detach(), other.detach()) for one, other in zip(tokens, rows, strict=True)])
        return output_UF.unflatten(1, output_TQD.shape[1:])

    return attention


def rows_of(samples: PackedInputs, sharing: Sharing, *, is_held: bool) -> PackedInputs:
    """Return the rows that stand for the tokens of samples.

    Args:
        is_held: see `shared_attention`.
    """
    ids_U, positions_U = (tensor_T.index_select(0, sharing.first_U) for tensor_T in samples[:2])
    attention = shared_attention(samples.attention or segment_attention, sharing, is_held=is_held)
    return PackedInputs(ids_U, positions_U, samples.cu_seqlens, attention)
