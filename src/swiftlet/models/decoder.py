"""A decoder of our own for the most used families: Llama, Mistral, Qwen2, Qwen3.

transformers and peft bring three quarters of the time and half of the memory that a short run takes before its first
step. Where nothing but their arithmetic is needed, these modules stand in: the same names of modules and weights, so
adapters, optimizer states and checkpoints are the same, and the same numbers (tests/models/test_decoder.py compares).
The operators of the device, norms and gated MLPs are put in by `fused.py` as they are for models of transformers.

Shapes: T tokens of all samples, N wanted positions, Q heads, K key-value heads, D head size, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from swiftlet.device.kernels import AttentionRules, PackedAttention, rms_norm
from swiftlet.models.arena import empty_like
from swiftlet.models.attention import segment_attention
from swiftlet.models.decoder_config import ARCHITECTURES, DecoderConfig, Rope

Angles = tuple[Tensor, Tensor]


class Outputs(NamedTuple):
    """What a pass gives; names as in transformers."""

    last_hidden_state: Tensor
    logits: Tensor | None = None


class Pass(NamedTuple):
    """What all layers of a pass share: cosines and sines [1, T, D], boundaries of the samples, the attention."""

    angles: Angles
    cu_seqlens: list[int]
    attend: PackedAttention


def frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Return the angle of each pair at position 1, fp32 [D / 2].

    Source: Su et al. 2021, RoFormer, section 3.2.2; for the stretched ones the Llama 3.1 model card's reference code.
    """
    angles = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    if not rope.stretch:
        return angles
    factor, low, high, length = rope.stretch.values()
    wavelengths = 2 * math.pi / angles
    stretched = torch.where(wavelengths > length / low, angles / factor, angles)
    share = (length / wavelengths - low) / (high - low)
    between = (1 - share) * stretched / factor + share * stretched
    is_between = ~(wavelengths < length / high) * ~(wavelengths > length / low)
    return torch.where(is_between, between, stretched)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    sin_first, sin_second = sin[:, None].chunk(2, dim=-1)
    result = torch.mul(x, cos[:, None], out=empty_like(x))
    into_first, into_second = result.chunk(2, dim=-1)
    product = empty_like(first)  # added and not fused: the bits are those of transformers
    into_first.sub_(torch.mul(second, sin_first, out=product), alpha=sign)
    into_second.add_(torch.mul(first, sin_second, out=product), alpha=sign)
    return result


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return [1, heads, T, D] rotated by [1, T, D], the first half of D paired with the second."""
    return _Rotate.apply(x, cos, sin)


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """Return a linear layer whose weights come from a file: none are drawn, which would import torch's compiler."""
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    layer.in_features, layer.out_features = inputs, outputs
    layer.weight = nn.Parameter(torch.empty(outputs, inputs))
    layer.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)
    return layer


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + epsilon); the arithmetic is fp32."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.variance_epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.variance_epsilon)


def project(x: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
    """Return what each layer makes of x."""
    return [layer(x) for layer in layers]


class Attention(nn.Module):
    """Causal attention of each sample to itself; `rotate` may be an operator of the device, `project` that of LoRA."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, self.head_dim = config.hidden_size, config.head_dim
        query, key = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = linear(hidden, query, config.qkv_bias)
        self.k_proj = linear(hidden, key, config.qkv_bias)
        self.v_proj = linear(hidden, key, config.qkv_bias)
        self.o_proj = linear(query, hidden, config.out_bias)
        if config.has_qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.has_norms = config.has_qk_norm
        self.rules = AttentionRules(self.head_dim**-0.5, config.sliding_window)
        self.rotate, self.project = rotate, project

    def forward(self, x_1TH: Tensor, shared: Pass) -> Tensor:
        """Return [1, T, Q D], which `o_proj` is still to be put over."""
        heads = (1, x_1TH.shape[1], -1, self.head_dim)
        projected = self.project(x_1TH, (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (y.view(heads) for y in projected)
        if self.has_norms:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        query, key = self.rotate(query, *shared.angles), self.rotate(key, *shared.angles)
        output_TQD = shared.attend(
            query.squeeze(0),  # its gradient is a view, that of query[0] a copy
            key.squeeze(0),
            value.squeeze(0),
            shared.cu_seqlens,
            self.rules,
        )
        return output_TQD.flatten(1).unsqueeze(0)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = linear(hidden, inner, bias)
        self.up_proj = linear(hidden, inner, bias)
        self.down_proj = linear(inner, hidden, bias)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and MLP, each over a norm and added to what came in."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_1TH: Tensor, shared: Pass, wanted_N: Tensor | None = None) -> Tensor:
        """Return [1, T, H], or [1, N, H] of the wanted positions: after attention each token goes its own way."""
        attended = self.self_attn(self.input_layernorm(x_1TH), shared)
        if wanted_N is not None:
            x_1TH, attended = x_1TH.index_select(1, wanted_N), attended.index_select(1, wanted_N)
        x_1TH = self.self_attn.o_proj(attended).add_(x_1TH)
        return self.mlp(self.post_attention_layernorm(x_1TH)).add_(x_1TH)


class Backbone(nn.Module):
    """Everything but the head."""

    inv_freq: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        sizes = config.vocab_size, config.hidden_size
        self.embed_tokens = nn.Embedding(*sizes, padding_idx=config.pad_token_id, _weight=torch.empty(*sizes))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.is_recomputed = False

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        cu_seqlens: list[int] | None = None,
        packed: PackedAttention | None = None,
        wanted_N: Tensor | None = None,
        **_: Any,
    ) -> Outputs:
        """Return the hidden states [1, T, H], or [1, N, H] of the wanted positions.

        Args:
            input_ids: [1, T]; position_ids likewise, counted from 0 where not given.
            cu_seqlens: boundaries of the samples; one sample where not given.
            packed: the attention of the device; None for `segment_attention`.
        """
        length = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)[None]
        x_1TH = self.embed_tokens(input_ids)
        angles = position_ids[..., None].float() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        turns = (angles.cos().to(x_1TH.dtype), angles.sin().to(x_1TH.dtype))
        shared = Pass(turns, cu_seqlens or [0, length], packed or segment_attention)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            wanted = wanted_N if number == last else None
            if self.is_recomputed and self.training:
                x_1TH = torch.utils.checkpoint.checkpoint(layer, x_1TH, shared, wanted, use_reentrant=False)
            else:
                x_1TH = layer(x_1TH, shared, wanted)
        return Outputs(self.norm(x_1TH))


class Decoder(nn.Module):
    """A causal language model, to be used as one of transformers is: the attributes below have its names."""

    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _no_split_modules = ("DecoderLayer",)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = linear(config.hidden_size, config.vocab_size, False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def base_model(self) -> Backbone:
        """Return everything but the head."""
        return self.model

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.lm_head

    def activation_checkpointing_enable(self, _: Mapping[str, Any]) -> None:
        """Let each layer recompute its activations in the backward pass, with the same random numbers."""
        self.model.is_recomputed = True

    def is_remote_code(self) -> bool:
        """Return False: the code is here."""
        return False

    def forward(self, input_ids: Tensor, **options: Any) -> Outputs:
        """Return the hidden states [1, T, H] and the logits [1, T, V]."""
        hidden_1TH = self.model(input_ids, **options).last_hidden_state
        return Outputs(hidden_1TH, self.lm_head(hidden_1TH))


def decoder_class(kind: str) -> type[Decoder]:
    """Return the class of a family; its name is what config.json and messages call it."""
    return type(ARCHITECTURES[kind], (Decoder,), {})
