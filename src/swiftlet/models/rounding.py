"""Micro-batches whose numbers of rows repeat, for processors that compile a product for its shape.

In bf16 a product of a CPU is compiled by oneDNN at the first use of its shape, about a millisecond each, and each
micro-batch has as many tokens and labels as no other before: a pass of the 2 M model took 1.5 times as long with new
shapes as with known ones, of the 60 M model 1.1 times. So rows are rounded up to a multiple: a sample of zeros that
nobody trains on goes last, and the last layer computes some rows that the head does not read.

Shapes: T tokens of a micro-batch, U rows that are computed, N rows that the head reads, W rows of the last layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # which imports attention, which rounds by this
    from swiftlet.models.sharing import Spread

MULTIPLE = 32
MOST_PARAMETERS = (
    200_000_000  # above, a pass takes longer than what is compiled for it, and added rows cost more
)


class Tokens(NamedTuple):
    """A micro-batch, as `CausalLM.forward` gets it."""

    input_ids_T: Tensor
    position_ids_T: Tensor
    cu_seqlens: list[int]
    targets_T: Tensor
    prefixes: Spread | None


def multiple_of(factor: Tensor) -> int:
    """Return what the rows of a tensor's products are to be a multiple of; 1 where none is compiled."""
    is_compiled = factor.device.type == "cpu" and factor.dtype in (torch.bfloat16, torch.float16)
    return MULTIPLE if is_compiled else 1


def row_multiple(model: nn.Module) -> int:
    """Return what the rows of a model's micro-batches are to be a multiple of; 1 where nothing is compiled."""
    base = max(model.parameters(), key=Tensor.numel)
    is_small = sum(parameter.numel() for parameter in model.parameters()) <= MOST_PARAMETERS
    return multiple_of(base) if is_small else 1


def rounded(tokens: Tokens, multiple: int, no_target: int) -> Tokens:
    """Return a micro-batch with a sample of zeros at its end, so that its rows are a multiple of `multiple`."""
    ids_T, positions_T, cu_seqlens, targets_T, prefixes = tokens
    num_tokens = len(ids_T)
    num_rows = num_tokens if prefixes is None else len(prefixes.first_U)
    added = -num_rows % multiple
    if not added:
        return tokens
    more = np.arange(added)
    if prefixes is not None:
        source_T = np.concatenate([prefixes.source_T, num_rows + more])
        first_U = np.concatenate([prefixes.first_U, num_tokens + more])
        prefixes = prefixes._replace(source_T=source_T, first_U=first_U)
    return Tokens(
        torch.cat([ids_T, ids_T.new_zeros(added)]),
        torch.cat([positions_T, torch.from_numpy(more)]),
        [*cu_seqlens, num_tokens + added],
        torch.cat([targets_T, targets_T.new_full((added,), no_target)]),
        prefixes,
    )


def rounded_rows(positions_N: Tensor, num_rows: int, multiple: int) -> tuple[Tensor, Tensor | None]:
    """Return the rows [W] to compute, in ascending order, and where those asked for are among them; None for all."""
    added = -len(positions_N) % multiple
    if not len(positions_N) or not added or len(positions_N) + added >= num_rows:
        return positions_N, None
    is_wanted = torch.zeros(num_rows, dtype=torch.bool)
    is_wanted[positions_N] = True
    is_wanted[(~is_wanted).nonzero()[:added, 0]] = True
    wanted_W = is_wanted.nonzero()[:, 0]
    return wanted_W, torch.searchsorted(wanted_W, positions_N)
