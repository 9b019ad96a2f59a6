"""The sizes of a decoder and what follows from them: exact parameter counts, without weights and without torch.

Shapes: V vocabulary, H hidden, I intermediate, D of one head.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from swiftlet.models.builds import (
    ADAPTED_EXPERTS,
    BUILT,
    FOUR_NORMS,
    FUSED_MLP,
    JOINED_QKV,
    LIST_OF_LAYERS,
    MLP_BIAS,
    NO_BIAS,
    ONE_NORM,
    OPTIONAL,
    OUT_BIAS,
    OWN_NAMES,
    PLAIN_SCORES,
    QK_NORM,
    QKV_BIAS,
    STEPS_OF_GELU,
    TIED,
    UNGATED,
)


class Geometry(NamedTuple):
    """Sizes of a decoder-only transformer.

    Args:
        experts: expert MLPs a layer beside or instead of the plain one; 0 for none.
        expert_intermediate: width of one expert.
        shared_intermediate: width of the expert that every token takes; 0 for none.
        active_experts: experts that one token takes.
        dense_layers: first layers of an expert model that have the plain MLP.
        norms: vectors of size H a layer.
        has_shared_gate: the shared expert has a gate of its own (Qwen).
        is_gated: the MLP has gate, up and down; otherwise up and down.
        has_norm_bias: norms are LayerNorms with a bias.
        has_fused_mlp: gate, up and down are modules of their own around a SiLU: models/fused.py computes such an MLP.
        activation_values: values of its width that the activation keeps beside its input, being made of several steps.
        has_joined_qkv: queries, keys and values come out of one matrix and are views of one tensor.
        has_plain_scores: scores are capped or have sinks, for which accelerators' attention has no operator.
        has_capped_logits: the logits are capped too.
        adapts_experts: adapters of gate, up and down are those of the experts' joint matrices, see `tuner`.
        query_rank, kv_rank: widths between the two matrices of latent attention (MLA); 0 for none.
        rope_dim, value_dim: with it, the rotated part of a head, and the size of its values.
        counted: parameters, where they were counted in the model itself; 0 where they follow from the sizes.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool = False
    head_dim: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    experts: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    active_experts: int = 0
    dense_layers: int = 0
    has_shared_gate: bool = False
    is_gated: bool = True
    has_norm_bias: bool = False
    has_fused_mlp: bool = True
    activation_values: int = 0
    has_joined_qkv: bool = False
    has_plain_scores: bool = False
    has_capped_logits: bool = False
    adapts_experts: bool = False
    query_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0
    value_dim: int = 0
    counted: int = 0

    @property
    def dim(self) -> int:
        """Return the size of one head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def up_width(self) -> int:
        """Return the outputs of a layer's up projection, where partial recomputing makes it again."""
        return (self.shared_intermediate if self.experts else self.intermediate) * self.has_fused_mlp

    @property
    def attention_parameters(self) -> int:
        """Return the parameters of one attention block."""
        if self.kv_rank:
            return self._latent_parameters()
        query, key = self.heads * self.dim, self.kv_heads * self.dim
        weights = self.hidden * (query + 2 * key) + query * self.hidden
        biases = (query + 2 * key) * self.qkv_bias + self.hidden * self.out_bias
        return weights + biases + 2 * self.dim * self.qk_norm

    def _latent_parameters(self) -> int:
        """Return those of latent attention: each narrow value has a norm. Source: arXiv:2405.04434, section 2.1."""
        query, rank = self.heads * self.dim, self.query_rank
        queries = rank * (self.hidden + 1 + query) if rank else self.hidden * query
        down = self.hidden * (self.kv_rank + self.rope_dim) + self.kv_rank
        up = self.kv_rank * self.heads * (self.dim - self.rope_dim + self.value_dim)
        biases = (rank + self.kv_rank + self.rope_dim + self.hidden) * self.qkv_bias
        return queries + down + up + self.heads * self.value_dim * self.hidden + biases

    def _mlp(self, width: int) -> int:
        ways = 3 if self.is_gated else 2
        return ways * self.hidden * width + ((ways - 1) * width + self.hidden) * self.mlp_bias

    def mlp_parameters(self, layer: int, *, experts: int | None = None) -> int:
        """Return the parameters of the MLP of a layer, with all its experts or with `experts` of them."""
        if not self.experts or layer < self.dense_layers:
            return self._mlp(self.intermediate)
        number = self.experts if experts is None else experts
        router = self.hidden * self.experts
        shared = self._mlp(self.shared_intermediate) if self.shared_intermediate else 0
        return (
            number * self._mlp(self.expert_intermediate)
            + router
            + shared
            + self.hidden * self.has_shared_gate
        )

    @lru_cache(maxsize=8)  # noqa: B019 - a tuple of numbers: a plan asks for the same ones thousands of times
    def _count(self, experts: int | None) -> int:
        norm = self.hidden * (2 if self.has_norm_bias else 1)
        mlps = sum(self.mlp_parameters(layer, experts=experts) for layer in range(self.layers))
        blocks = self.layers * (self.attention_parameters + self.norms * norm) + mlps
        return self.vocab * self.hidden * (1 if self.tied else 2) + blocks + norm

    @property
    def num_parameters(self) -> int:
        """Return the number of parameters, a tied head counted once."""
        return self.counted or self._count(None)

    @property
    def num_active_parameters(self) -> int:
        """Return the parameters that one token passes through."""
        if not self.experts:
            return self.num_parameters
        return self.num_parameters - self._count(None) + self._count(self.active_experts)


def geometry_of_config(config: Mapping[str, Any]) -> Geometry | None:
    """Return the geometry that a config.json describes; None where a needed size is missing or one is no number.

    A size that differs by layer, in a list, counts as the largest of them. A nested `text_config` is taken for models
    that also see or hear. Counts are exact for the families in `BUILT` and near for others.
    """
    inner = config.get("text_config")
    if isinstance(inner, Mapping) and "hidden_size" in inner:
        config = inner
    sizes = {
        OWN_NAMES.get(name, name): value if name == LIST_OF_LAYERS else _largest(value)
        for name, value in config.items()
    }
    kind = str(sizes.get("model_type", ""))
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if any(not is_size(sizes.get(name)) for name in needed):
        return None
    if any(sizes.get(name) and not is_size(sizes[name]) for name in OPTIONAL):
        return None
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    kv_heads = sizes.get("num_key_value_heads") or heads
    geometry = Geometry(
        hidden=hidden,
        layers=sizes["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        intermediate=sizes.get("intermediate_size") or 4 * hidden,
        vocab=sizes["vocab_size"],
        tied=bool(sizes.get("tie_word_embeddings", kind in TIED)),
        head_dim=sizes.get("head_dim") or 0,
        **_biases(kind, sizes),
        qk_norm=kind in QK_NORM,
        is_gated=kind not in UNGATED,
        norms=4 if kind in FOUR_NORMS else 1 if kind in ONE_NORM else 2,
        has_fused_mlp=kind in FUSED_MLP and sizes.get("hidden_act", "silu") in ("silu", "swish"),
        activation_values=STEPS_OF_GELU if _activation(sizes) == "gelu_new" else 0,
        has_joined_qkv=kind in JOINED_QKV,
        has_plain_scores=kind in PLAIN_SCORES,
        has_capped_logits=bool(sizes.get("final_logit_softcapping", kind == "gemma2")),
    )
    return geometry._replace(**_experts(kind, sizes), **_latent(sizes))


def is_exact(config: Mapping[str, Any]) -> bool:
    """Return whether the parameter count of this config.json's geometry is exact."""
    inner = config.get("text_config")
    return not isinstance(inner, Mapping) and config.get("model_type") in BUILT


def is_size(value: Any) -> bool:
    """Return whether a value of a config.json is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _activation(sizes: Mapping[str, Any]) -> Any:
    return sizes.get("hidden_act") or sizes.get("activation_function")


def _largest(value: Any) -> Any:
    return max(value) if isinstance(value, list) and value and all(map(is_size, value)) else value


def _biases(kind: str, sizes: Mapping[str, Any]) -> dict[str, bool]:
    if kind == "starcoder2":
        bias = bool(sizes.get("use_bias", True))
        return {
            "qkv_bias": bias,
            "out_bias": bias,
            "mlp_bias": bias,
            "has_norm_bias": True,
        }
    if kind == "phi":  # whose head has a bias too
        return {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "has_norm_bias": True}
    if kind in ("internlm2", "internlm3"):
        qkv = bool(sizes.get("qkv_bias", sizes.get("bias", False)))
        bias = bool(sizes.get("bias", False))
        return {"qkv_bias": qkv, "out_bias": bias, "mlp_bias": bias and kind == "internlm3"}
    asked = bool(sizes.get("attention_bias", sizes.get("add_qkv_bias", kind in QKV_BIAS)))
    qkv = kind in ("qwen2", "qwen2_moe") or (asked and kind not in NO_BIAS)
    mlp = kind in MLP_BIAS and bool(sizes.get("mlp_bias"))
    return {"qkv_bias": qkv, "out_bias": qkv and kind in OUT_BIAS, "mlp_bias": mlp}


def _experts(kind: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    number = sizes.get("num_experts") or sizes.get("num_local_experts") or sizes.get("n_routed_experts")
    if not is_size(number):
        return {}
    shared = sizes.get("shared_expert_intermediate_size") or 0
    has_shared_gate = bool(shared)
    shared = shared or (sizes.get("n_shared_experts") or 0) * (sizes.get("moe_intermediate_size") or 0)
    return {
        "experts": number,
        "expert_intermediate": sizes.get("moe_intermediate_size") or sizes.get("intermediate_size") or 0,
        "active_experts": sizes.get("num_experts_per_tok") or 2,
        "shared_intermediate": shared,
        "has_shared_gate": has_shared_gate,
        "dense_layers": _num_dense(sizes),
        "adapts_experts": kind in ADAPTED_EXPERTS and bool(shared or _num_dense(sizes)),
    }


def _num_dense(sizes: Mapping[str, Any]) -> int:
    """Return how many layers of an expert model have the plain MLP, wherever they lie."""
    layers, every = sizes["num_hidden_layers"], sizes.get("decoder_sparse_step") or 1
    only = sizes.get(LIST_OF_LAYERS)
    plain = set(only) if isinstance(only, list) and all(isinstance(layer, int) for layer in only) else set()
    plain |= {layer for layer in range(layers) if (layer + 1) % every}
    return max(len(plain & set(range(layers))), sizes.get("first_k_dense_replace") or 0)


def _latent(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what latent attention has of its own: its heads have a part that is not rotated, and their own keys."""
    nope, rope = sizes.get("qk_nope_head_dim"), sizes.get("qk_rope_head_dim")
    if not (sizes.get("kv_lora_rank") and nope and rope):
        return {}
    return {
        "query_rank": sizes.get("q_lora_rank") or 0,
        "kv_rank": sizes["kv_lora_rank"],
        "rope_dim": rope,
        "head_dim": nope + rope,
        "kv_heads": sizes["num_attention_heads"],
        "value_dim": sizes.get("v_head_dim") or nope,
    }
