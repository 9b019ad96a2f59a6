"""The causal convolution of channels that keeps the last inputs of each sample in a state."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simnpu.fused.kernels import NotSimulated, check, kernel

ZEROS, FROM_STATE, FIRST_HIDDEN = 0, 1, 2  # how a sample begins; the last also hides its first results
WITHOUT_EFFECT = (0, 1)  # values of run_mode, which the documentation calls a relic


def pieces(x: Tensor, starts: Tensor | None) -> list[Tensor]:
    """The tokens of each sample, [S, H], as views."""
    if x.dim() == 3:
        return list(x)
    check(starts is not None, "npu_fused_causal_conv1d: x has 2 dimensions and needs query_start_loc")
    ends = starts.tolist()
    return [x[first:last] for first, last in zip(ends, ends[1:], strict=False)]


def check_use(
    x: Tensor, weight: Tensor, cache_indices: Tensor | None, activation: str, conv_mode: str
) -> None:
    check(
        x.shape[-1] == weight.shape[1],
        f"npu_fused_causal_conv1d: x has {x.shape[-1]} channels, weight has {weight.shape[1]}",
    )
    if activation != "None" or conv_mode != "default":
        raise NotSimulated(
            f"npu_fused_causal_conv1d: the simulator does not know activation={activation!r}, conv_mode={conv_mode!r}"
        )
    if cache_indices is not None and cache_indices.dim() != 1:
        raise NotSimulated("npu_fused_causal_conv1d: the simulator has no cache_indices of blocks")


@kernel("npu_fused_causal_conv1d")
def convolve(
    x: Tensor, weight: Tensor, conv_states: Tensor, query_start_loc: Tensor | None, cache_indices: Tensor | None,
    initial_state_mode: Tensor | None, num_accepted_tokens: Tensor | None, activation: str, pad_slot_id: int,
    run_mode: int, residual_connection: int, conv_mode: str, max_query_len: int,
) -> Tensor:  # fmt: skip
    """The result in the shape of x, zeros for samples that are padding; the states are written.

    `max_query_len` is a hint about sizes.
    """
    check_use(x, weight, cache_indices, activation, conv_mode)
    check(run_mode in WITHOUT_EFFECT, f"npu_fused_causal_conv1d: run_mode {run_mode} must be 0 or 1")
    out, kept = torch.zeros_like(x), weight.shape[0] - 1
    results = pieces(out, query_start_loc)
    for sample, tokens in enumerate(pieces(x, query_start_loc)):
        slot = sample if cache_indices is None else int(cache_indices[sample])
        if slot == pad_slot_id:
            continue
        state = conv_states[slot]
        skipped = 0 if num_accepted_tokens is None else int(num_accepted_tokens[sample]) - 1
        how = FROM_STATE if initial_state_mode is None else int(initial_state_mode[sample])
        before = torch.zeros_like(state[:kept]) if how == ZEROS else state[skipped : skipped + kept]
        whole = torch.cat((before, tokens))
        kernels = weight.float().t().unsqueeze(1)
        found = F.conv1d(whole.float().t()[None], kernels, groups=x.shape[-1])[0].t()
        if how == FIRST_HIDDEN:
            found[:kept] = 0
        results[sample].copy_(found + tokens.float() if residual_connection else found)
        if len(whole) > len(state):
            state.copy_(whole[-len(state) :])
        else:
            state[: len(whole)] = whole
    return out


@kernel("npu_fused_causal_conv1d_v2")
@wraps(convolve)  # whose arguments it takes
def convolve_in_place(**arguments: Any) -> None:
    """The same, in the place of x."""
    arguments["x"].copy_(convolve(**arguments))
