"""Attention with a state instead of keys and values: the gated delta rule.

Shapes: T tokens of all samples, K heads of query and key, N heads of value and state (N is a multiple of K).
"""

from __future__ import annotations

import torch
from torch import Tensor

from simnpu.fused.kernels import kernel


def steps(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor | None, gate: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All in float32 with N heads, the query scaled, the gate as a factor."""
    heads = value.shape[1]
    group = heads // key.shape[1]
    scale = key.shape[-1] ** -0.5 if scale is None else scale
    q, k = (x.float().repeat_interleave(group, 1) for x in (query, key))
    ones = torch.ones(value.shape[0], heads)
    return (
        q * scale,
        k,
        value.float(),
        ones if beta is None else beta.float(),
        ones if gate is None else gate.float().exp(),
    )


def step(state: Tensor, t: int, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The state [N, Dv, Dk] after token t, and what the query reads from it."""
    q, k, v, beta, decay = (part[t] for part in parts)
    state = state * decay[:, None, None]
    missing = (v - (state * k[:, None]).sum(-1)) * beta[:, None]
    state = state + missing[..., None] * k[:, None]
    return state, (state * q[:, None]).sum(-1)


@kernel("npu_recurrent_gated_delta_rule")
def recurrent_gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, beta: Tensor | None, scale: float | None,
    actual_seq_lengths: Tensor | None, ssm_state_indices: Tensor | None, num_accepted_tokens: Tensor | None,
    g: Tensor | None,
) -> Tensor:  # fmt: skip
    """Each token's state goes to its own place; a sample begins with that of its last accepted token."""
    parts = steps(query, key, value, beta, g, scale)
    where, out, start = ssm_state_indices.tolist(), torch.empty_like(parts[2]), 0
    before = state.float()
    for sample, length in enumerate(actual_seq_lengths.tolist()):
        accepted = 1 if num_accepted_tokens is None else int(num_accepted_tokens[sample])
        own = before[where[start + accepted - 1]]
        for t in range(start, start + length):
            own, out[t] = step(own, t, parts)
            state[where[t]] = own.to(state.dtype)
        start += length
    return out.to(value.dtype)


@kernel("npu_recurrent_gated_delta_rule_functional")
def recurrent_gated_delta_rule_functional(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, beta: Tensor | None, scale: float | None,
    actual_seq_lengths: Tensor | None, ssm_state_indices: Tensor | None, num_accepted_tokens: Tensor | None,
    g: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    changed = state.clone()
    out = recurrent_gated_delta_rule(
        query, key, value, changed, beta, scale, actual_seq_lengths, ssm_state_indices, num_accepted_tokens, g
    )
    return out, changed


@kernel("npu_chunk_gated_delta_rule")
def chunk_gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor | None, initial_state: Tensor | None,
    actual_seq_lengths: Tensor | None, scale: float | None, g: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same for whole samples, each with one state: all outputs, and the states [B, N, Dv, Dk] at the ends."""
    parts = steps(query, key, value, beta, g, scale)
    states, out, start = initial_state.clone(), torch.empty_like(parts[2]), 0
    for sample, length in enumerate(actual_seq_lengths.tolist()):
        own = states[sample].float()
        for t in range(start, start + length):
            own, out[t] = step(own, t, parts)
        states[sample] = own.to(states.dtype)
        start += length
    return out.to(value.dtype), states
