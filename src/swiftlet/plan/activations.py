"""What a step keeps for its backward pass, and its peak, from sizes alone: no weights, no device, no torch.

The terms are those of the step in `train` over `models`: packed samples, chunked cross entropy, gated MLPs that keep
their inputs alone (all that autograd keeps where models/fused.py does not know their build), norms that keep their
input or (frozen, in fp32 on a processor) their output, flat gradients. The
trace (`commands/plan_trace.py`) runs that very step on fake tensors and must agree. Per layer and token the backward
pass needs: what both norms keep (2 H), the normalised inputs (H each where an adapter or trained weight reads one that
its norm does not keep), rotated q and k, v, the attention's output where its kernel keeps it, gate and up (2 I), and,
where they are trained, the inputs of o, gate/up and down.

Shapes: T tokens of the largest micro-batch, N its labels, H hidden, I intermediate, V vocabulary, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from swiftlet.plan.head import head_bytes
from swiftlet.plan.setting import (
    ATTENTION,
    FP32,
    FULL,
    MLP,
    PARTIAL,
    Setting,
    adapts_experts,
    num_adapter_parameters,
    projections,
    trains_head,
)
from swiftlet.plan.sizes import Sizes

MASK_BYTES = (
    2048**2
)  # the one mask of torch_npu's attention, kept from the first call on, whatever the lengths
SUMS_A_HEAD = 2 * 8  # a token: greatest score and sum, each written eight times by torch_npu's attention
# Of a query and key: the capped score, and its weight in fp32 and in the type of a shorter run.
SCORE_BYTES = 8


def saved_per_layer(g: Sizes, s: Setting) -> float:
    """Return the bytes that one layer keeps for its backward pass, among them its input or what is made of it."""
    e, tokens = s.itemsize, s.tokens
    query, key = g.heads * g.dim, g.kv_heads * g.dim
    value = g.value_dim or g.dim
    reads_input = s.is_full or _reads_normed(g, s, ATTENTION[:3])
    width: float = g.norms * g.hidden + (g.hidden if reads_input else 0) + query + key + g.kv_heads * value
    reads_output = s.is_full or "o_proj" in _read_by(s)
    width += g.heads * value if s.keeps_attention or reads_output else 0
    width += query + key if g.qk_norm else 0
    width += _of_own_norms(g, s)
    width += query + key if g.has_joined_qkv else 0  # the values are a view of all three
    width += (
        query + key if s.keeps_inputs and not (g.has_joined_qkv or g.kv_rank) else 0
    )  # before they are turned
    width += g.query_rank + g.kv_rank
    sums = (SUMS_A_HEAD if s.keeps_inputs else 1) * g.heads if s.keeps_attention else 0
    vectors = FP32 * (g.norms + sums + (g.heads + g.kv_heads) * g.qk_norm)
    ranks = 0 if s.is_full else s.rank * len(s.targets & projections(g).keys())
    rest = _saved_mlp(g, s) + _saved_scores(g, s) + _merged_experts(g, s)
    rest += _saved_by_peft(g, s)
    rest += tokens * (s.more_a_token + s.more_a_pair * min(s.longest or tokens, tokens))
    return tokens * (e * (width + ranks) + vectors) + rest


def _of_own_norms(g: Sizes, s: Setting) -> float:
    """Return the values a token that norms of the model itself keep beside ours: the input in fp32, what is scaled."""
    if s.has_fused or g.has_norm_bias:
        return 0
    width = g.norms * g.hidden + (g.heads + g.kv_heads) * g.dim * g.qk_norm
    return width * (FP32 / s.itemsize - 1 + (s.is_full or s.trains_norms))


def _copies_inputs(s: Setting) -> bool:
    """Return whether each adapter keeps an fp32 copy of its input, cast or dropped, and not the input."""
    return s.has_peft_layers and (s.itemsize < FP32 or s.dropout > 0)


def _read_by(s: Setting) -> frozenset[str]:
    """Return the matrices for which the layer keeps the input itself; not looked at with `is_full`."""
    return s.saved if _copies_inputs(s) else s.read_by


def _saved_by_peft(g: Sizes, s: Setting) -> float:
    """Return what adapters as peft computes them keep beside: inputs in fp32, what is dropped of them; more with DoRA.

    DoRA keeps both products that it scales. Under dropout it multiplies the base's matrix by the dropped input once
    more, in fp32, and keeps a copy of the matrix for it.
    """
    if not s.has_peft_layers:
        return 0
    names = s.targets - set(MLP) if adapts_experts(g, s) else s.targets
    sizes = [size for name, size in projections(g).items() if name in names]
    width = sum(FP32 * inputs + (FP32 - s.itemsize) * s.rank for inputs, _ in sizes) * _copies_inputs(s)
    has_dropout = s.dropout > 0
    width += sum((FP32 if s.is_host else 1) * inputs for inputs, _ in sizes) * has_dropout
    width += (
        sum(((FP32 if has_dropout else s.itemsize) + FP32) * outputs for _, outputs in sizes) * s.has_dora
    )
    copies = s.has_dora and has_dropout and s.itemsize < FP32
    return s.tokens * width + copies * sum(FP32 * inputs * outputs for inputs, outputs in sizes)


def _merged_experts(g: Sizes, s: Setting) -> float:
    """Return the bytes, in a mean layer, of experts' matrices with their adapters added, which peft's products keep."""
    if not adapts_experts(g, s):
        return 0
    share = (g.layers - g.dense_layers) / g.layers
    return share * s.itemsize * g.experts * 3 * g.hidden * g.expert_intermediate


def _saved_scores(g: Sizes, s: Setting) -> float:
    """Return the bytes that attention by its definition keeps: scores and weights of each head, and repeated keys."""
    pairs = g.heads * s.tokens * min(s.longest or s.tokens, s.tokens)
    if (
        s.is_host and g.kv_rank and g.value_dim != g.dim
    ):  # for heads of two sizes the processor has no operator either
        return FP32 * pairs
    if not g.has_plain_scores or s.is_host:
        return 0
    return SCORE_BYTES * pairs + s.itemsize * 2 * s.tokens * g.heads * g.dim


def spared_per_layer(g: Sizes, s: Setting) -> float:
    """Return the bytes of these that partial recomputing does not keep."""
    kinds = [frozenset(names) & projections(g).keys() for names in (ATTENTION[:3], MLP[:2])]
    inputs = sum(s.is_full or _reads_normed(g, s, names) for names in kinds)
    return s.itemsize * s.tokens * (g.hidden * inputs + g.up_width * (1 + s.is_full))


def _reads_normed(g: Sizes, s: Setting, names: Iterable[str]) -> bool:
    """Return whether adapters of these matrices keep a normalised input that its norm does not keep anyway."""
    return not _keeps_normed(g, s) and bool(_read_by(s) & set(names))


def _keeps_normed(g: Sizes, s: Setting) -> bool:
    """Return whether norms keep their output in the place of their input: those with a bias are not ours."""
    return s.keeps_normed and not g.has_norm_bias


def _cast_adapters(g: Sizes, s: Setting) -> float:
    """Return the bytes of all adapters in the type of the base, plain and scaled, where it is not fp32."""
    if s.is_full or s.itemsize == FP32 or s.has_peft_layers:
        return 0
    return 2 * s.itemsize * num_adapter_parameters(g, s)


def _saved_mlp(g: Sizes, s: Setting) -> float:
    e, tokens = s.itemsize, s.tokens
    reads_input = s.is_full or _reads_normed(g, s, MLP[:2])
    if g.norms == 1 and reads_input:  # attention and MLP read one normalised value
        reads_input = not (s.is_full or _reads_normed(g, s, ATTENTION[:3]))
    if not g.experts:
        width = _kept_widths(g, s) * g.intermediate + (g.hidden if reads_input else 0)
        return tokens * e * width
    # Each token passes `active_experts` experts of transformers' own build: gate, up, silu(gate) and the output, which
    # is scaled by the router's weight; trained experts also keep their input and the product of gate and up.
    rows = tokens * g.active_experts
    is_trained = s.is_full or adapts_experts(g, s)
    width = 3 * g.expert_intermediate + g.hidden + (g.hidden + g.expert_intermediate if is_trained else 0)
    shared = 2 * g.shared_intermediate + g.hidden if g.shared_intermediate else 0
    shared += g.hidden * (2 if s.is_full else bool(reads_input and g.shared_intermediate))
    return rows * e * width + tokens * (e * shared + FP32 * 2 * g.experts)


def _kept_widths(g: Sizes, s: Setting) -> int:
    """Return how many values of size I a plain MLP keeps: gate and up; act(gate) and the product where it must."""
    if has_our_mlp(g, s):
        is_again = not s.keeps_inputs or s.recompute == PARTIAL  # for adapters alone
        return 2 + (s.is_full or "down_proj" in s.saved or (_reads_product(g, s) and not is_again))
    return (3 if g.is_gated else 1) + g.activation_values + _reads_product(g, s)


def _reads_product(g: Sizes, s: Setting) -> bool:
    """Return whether what is trained of down needs its input."""
    return s.is_full or ("down_proj" in _read_by(s) and "down_proj" in projections(g))


def has_our_mlp(g: Sizes, s: Setting) -> bool:
    """Return whether models/fused.py computes the MLP."""
    return g.has_fused_mlp and s.has_fused


def widest(g: Sizes) -> int:
    """Return the intermediate width that a token has at once."""
    return g.active_experts * g.expert_intermediate + g.shared_intermediate if g.experts else g.intermediate


def peak_of_step(g: Sizes, s: Setting) -> tuple[float, float]:
    """Return (activations, logits): the step's peak above what is resident, and how far the head raises it.

    The peak lies where the head makes its logits, where the last layer's MLP goes backward (all layers are still
    kept), or, with a trained tied head, where its two gradients meet at the end.
    """
    e, tokens, labels = s.itemsize, s.tokens, s.num_labels
    layer = saved_per_layer(g, s)
    stream = e * tokens * g.hidden
    spared = spared_per_layer(g, s) if s.recompute == PARTIAL else 0.0
    # A checkpoint holds its input, whether or not anything in or before the layer is trained.
    kept = g.layers * stream if s.recompute == FULL else (g.layers - s.num_idle) * (layer - spared)
    kept += 2 * e * tokens * g.dim + e * labels * g.hidden  # cos and sin; the gradient of the hidden states
    kept += _cast_adapters(g, s) + (MASK_BYTES if s.keeps_inputs else 0)
    if g.norms == 1 and s.recompute != FULL and not (s.is_full or s.read_by & set(MLP)):
        kept -= _saved_mlp(g, s)  # beside the attention: layer 0's sees nothing that needs a gradient
    # Layer 0 keeps nothing of its input, unless that is trained or recomputed from; the last norm keeps its own.
    if _keeps_normed(g, s):
        reads_input = bool(_read_by(s) & set(ATTENTION[:3]))
    else:
        reads_input = s.is_full or (s.recompute == PARTIAL and _reads_normed(g, s, ATTENTION[:3]))
    kept += stream + FP32 * tokens if reads_input or s.recompute == FULL else 0
    inside = kept - e * labels * g.hidden - stream - FP32 * tokens
    inside += _of_one_layer(g, s)
    if s.is_full and trains_head(s) and g.tied:
        head_weight = e * g.vocab * g.hidden
        inside = max(inside + head_weight, 3 * head_weight)
    return inside, max(0.0, kept + head_bytes(g, s, keeps_states=_keeps_normed(g, s)) - inside)


def _of_one_layer(g: Sizes, s: Setting) -> float:
    """Return what a layer's backward pass adds: of a sample where each has its own pass; what is made again too."""
    if s.is_alone:
        s = replace(s, tokens=min(s.longest or s.tokens, s.tokens))
    if s.recompute != FULL:
        return layer_backward(g, s)
    stream = 0 if _keeps_normed(g, s) else s.itemsize * s.tokens * g.hidden
    # What is kept of all samples of the micro-batch: in that layer more than in the mean one.
    again = s.tokens * (s.more_again + s.more_again_a_pair * min(s.longest or s.tokens, s.tokens))
    return layer_backward(g, s) + saved_per_layer(g, s) - stream + again


def layer_backward(g: Sizes, s: Setting) -> float:
    """Return the bytes that the backward pass of a layer makes beside what is kept, in its MLP or its attention."""
    return max(_mlp_backward(g, s), _scores_backward(g, s), _dora_forward(g, s))


def _dora_forward(g: Sizes, s: Setting) -> float:
    """Return the bytes that DoRA makes of its largest matrix for its norm: a unit matrix of its inputs, its update."""
    if s.is_full or not s.has_dora:
        return 0
    sizes = [size for name, size in projections(g).items() if name in s.targets]
    return max((FP32 * inputs * (inputs + 2 * outputs) for inputs, outputs in sizes), default=0)


def _scores_backward(g: Sizes, s: Setting) -> float:
    """Return what attention by its definition makes of its longest sample, the layer's MLP being done and gone.

    That are the gradients of the weights and of the scores, in fp32; weights of a shorter type are no longer needed.
    """
    if not g.has_plain_scores or s.is_host:
        return 0
    weights = s.itemsize if s.itemsize < FP32 else 0
    pairs = g.heads * min(s.longest or s.tokens, s.tokens) ** 2
    made = (2 * FP32 - weights) * pairs + s.itemsize * s.tokens * (g.hidden + g.heads * g.dim)
    return made - _saved_mlp(g, s)


def _mlp_backward(g: Sizes, s: Setting) -> float:
    more = s.tokens * s.more_backward + (s.longest or s.tokens) ** 2 * s.more_backward_a_pair
    e, wide = s.itemsize, s.itemsize * s.tokens * widest(g)
    stream = e * s.tokens * g.hidden + more
    again = e * s.tokens * g.up_width * (s.recompute == PARTIAL)
    if s.recompute == PARTIAL and (s.is_full or _reads_normed(g, s, MLP[:2])):
        stream += e * s.tokens * g.hidden  # the normalised input
    if s.is_full:  # the product is freed once the gradient of down's weight is made
        return stream + 2 * again + max(2 * wide, wide + e * g.hidden * g.intermediate)
    if not _reads_product(g, s):  # gradients of the product, of gate and of up
        return stream + again + (3 if g.is_gated else 2) * wide
    if not (has_our_mlp(g, s) or g.experts):  # the product itself is gone when gate and up get theirs
        return stream + 2 * wide
    # Adapters of down write gate's gradient over the product's; the places that dropout zeroes take half as much.
    return stream + again + (2.5 if s.is_host and not g.experts else 4) * wide
