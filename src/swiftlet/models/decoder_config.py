"""Which model folders the decoder of our own computes, and its sizes. No torch, no transformers: this is read at start.

A config.json says more than it seems: everything that could change what a model computes is looked at, and a folder
with anything else in it is left to transformers, which also words what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swiftlet.models.geometry import is_size
from swiftlet.models.safety import read_config, tensors_in

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
EPSILON, QWEN3_HEAD = 1e-6, 128  # transformers' own where config.json is silent
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
NOT_WEIGHTS = ".rotary_emb.inv_freq"  # old files hold what follows from the sizes


@dataclass(frozen=True)
class Rope:
    """The rotation's base and, for Llama 3.1 and later, how its slow frequencies are stretched (`LLAMA3` by name)."""

    theta: float
    stretch: Mapping[str, float] = field(default_factory=dict)


@dataclass
class DecoderConfig:
    """Sizes of a decoder with RMS norms, rotated queries and keys, and a gated MLP.

    Args:
        sliding_window: tokens that a query sees; None for all before it.
        tie_word_embeddings: the head is the embedding.
        pad_token_id: as an input it does not train its embedding, as in transformers.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    has_qk_norm: bool
    sliding_window: int | None
    tie_word_embeddings: bool
    pad_token_id: int | None
    _name_or_path: str = ""

    def get_text_config(self) -> DecoderConfig:
        """Return itself: there is nothing but text."""
        return self


def decoder_config(folder: Path) -> DecoderConfig | None:
    """Return the sizes of a model folder that our own decoder computes; None leaves it to transformers.

    Raises:
        SwiftletError: config.json or a weight file cannot be read.
    """
    config = config_of(read_config(folder))
    if config is None:
        return None
    wanted = dict(weight_shapes(config))
    found = {name: info.shape for _, name, info in tensors_in(folder) if not name.endswith(NOT_WEIGHTS)}
    return config if found == wanted else None


def config_of(raw: Mapping[str, Any]) -> DecoderConfig | None:
    """Return what a config.json describes, None where it is not wholly known here."""
    kind = raw.get("model_type")
    rope, window = _rope(raw), _window(raw)
    sizes = {name: raw.get(name) for name in SIZES}
    if kind == "llama" and sizes["num_key_value_heads"] is None:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if kind not in ARCHITECTURES or rope is None or window == 0 or not all(map(is_size, sizes.values())):
        return None
    hidden, heads, kv_heads = (sizes[name] for name in (SIZES[1], SIZES[4], SIZES[5]))
    default = QWEN3_HEAD if kind == "qwen3" else hidden // heads
    head_dim, epsilon = raw.get("head_dim") or default, raw.get("rms_norm_eps", EPSILON)
    is_odd = hidden % heads or heads % kv_heads or not is_size(head_dim) or head_dim % 2
    if is_odd or (kind == "qwen2" and "head_dim" in raw) or not isinstance(epsilon, float):
        return None
    if (
        raw.get("hidden_act", "silu") != "silu"
        or raw.get("attention_dropout")
        or "quantization_config" in raw
    ):
        return None
    pad = raw.get("pad_token_id")
    if pad is not None and not (isinstance(pad, int) and 0 <= pad < raw["vocab_size"]):
        return None
    asked = raw.get("attention_bias", False) is True
    return DecoderConfig(
        model_type=str(kind),
        **sizes,  # type: ignore[arg-type]
        head_dim=head_dim,
        rms_norm_eps=epsilon,
        rope=rope,
        qkv_bias=kind == "qwen2" or (asked and kind in ("llama", "qwen3")),
        out_bias=asked and kind in ("llama", "qwen3"),
        mlp_bias=kind == "llama" and raw.get("mlp_bias") is True,
        has_qk_norm=kind == "qwen3",
        sliding_window=window,
        tie_word_embeddings=raw.get("tie_word_embeddings", False) is True,
        pad_token_id=pad,
    )


def weight_shapes(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of the weights in the published files."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (query, hidden, config.qkv_bias),
        "self_attn.k_proj": (key, hidden, config.qkv_bias),
        "self_attn.v_proj": (key, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, query, config.out_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}."
        for name, (outputs, inputs, has_bias) in linears.items():
            yield f"{layer}{name}.weight", (outputs, inputs)
            if has_bias:
                yield f"{layer}{name}.bias", (outputs,)
        for name in ("q_norm", "k_norm") if config.has_qk_norm else ():
            yield f"{layer}self_attn.{name}.weight", (config.head_dim,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)


def _rope(raw: Mapping[str, Any]) -> Rope | None:
    """Return the rotation; None for a kind, or a mixture of old and new names, that is not known here."""
    named = [raw[name] for name in ("rope_parameters", "rope_scaling") if raw.get(name) is not None]
    settings = named[0] if named else {}
    if len(named) > 1 or not isinstance(settings, Mapping) or raw.get("partial_rotary_factor", 1) != 1:
        return None
    kinds = {settings.get("rope_type", "default"), settings.get("type", settings.get("rope_type", "default"))}
    theta = settings.get("rope_theta", raw.get("rope_theta"))
    known = {"rope_type", "type", "rope_theta", *(LLAMA3 if kinds == {"llama3"} else ())}
    if not isinstance(theta, int | float) or len(kinds) > 1 or not kinds <= {"default", "llama3"}:
        return None
    if not set(settings) <= known or (kinds == {"llama3"} and not set(LLAMA3) <= set(settings)):
        return None
    if "original_max_position_embeddings" in raw:
        return None
    return Rope(float(theta), {name: settings[name] for name in LLAMA3} if kinds == {"llama3"} else {})


def _window(raw: Mapping[str, Any]) -> int | None:
    """Return how far a query sees; 0 where layers differ, which is left to transformers."""
    kinds = raw.get("layer_types") or []
    is_full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
    if not is_full or raw.get("use_sliding_window"):
        return 0
    if raw.get("model_type") != "mistral":
        return None
    window = raw.get("sliding_window", 0)
    return window if window is None or is_size(window) else 0
