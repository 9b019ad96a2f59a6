"""What of a run shapes its memory and time, and how many numbers it trains.

Shapes: H hidden, V vocabulary, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from swiftlet.plan.sizes import Sizes

FP32 = 4
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP, ENDS = ("gate_proj", "up_proj", "down_proj"), ("embed_tokens", "lm_head")
# --gradient_checkpointing: made again is nothing, normalised values with up and the MLP's product, or each whole layer.
LEVELS = NONE, PARTIAL, FULL = ("false", "partial", "true")


@dataclass(frozen=True)
class Setting:
    """What of a run shapes its memory.

    Args:
        itemsize: bytes of a weight or an activation.
        targets: matrices with adapters, of `ATTENTION`, `MLP` and `ENDS`; not looked at with `is_full`.
        trained_share: share of the parameters that a full run trains.
        extra_trained: parameters trained whole beside the adapters, such as the embedding.
        states: numbers that the optimizer keeps a parameter.
        engine: none, zero2, zero3, zero3-offload, fsdp2 or fsdp2-offload; with none each rank has a replica.
        keeps_attention: the attention's kernel keeps its output for the backward pass.
        recompute: of LEVELS.
        labels: labelled tokens among `tokens`; all where None.
        is_host: the device is the processor, where a chunk of logits is smaller.
        trains_norms: the weights of norms are among what is trained.
        saved: matrices trained whole beside the adapters, named as targets.
        freezes_head: a full run does not train the head.
        largest_trained: numbers of the largest tensor trained in the weights' type; None where that is of the sizes.
        dropout: share of an adapter's input that is dropped.
        longest: tokens of the longest sample; 0 where the micro-batch is one sample.
        keeps_inputs: the device's fused operators keep what they are given: the rotation queries and keys as they were,
            SwiGLU makes its product no second time, and attention keeps two rows of sums and, once, its mask.
        has_fused: norms and MLPs compute as `swiftlet.models` does, not with the model's own operators.
        own_buffers: of a user's own settings of DeepSpeed: their engine, the numbers of all buckets, and those of
            parameters that are whole at most.
        more_a_token, more_a_pair: bytes that a mean layer of a build that the formula does not know keeps beside, a
            token (below 0 where it keeps less), and a token and token of its sample.
        more_backward, more_backward_a_pair: what the backward pass of a layer of it makes beside.
        more_again, more_again_a_pair: what the layer that takes most, made again, has above that mean.
        num_idle: first layers before all that is trained, which keep no more than a checkpoint's input.
        is_alone: each sample has a pass of its own, as the model cannot tell samples apart.
        num_adapted: parameters of all adapters, where they were counted in the model itself.
        host_optimizer: the engine of DeepSpeed whose optimizer, and nothing else, is in the host's memory.
    """

    itemsize: int
    tokens: int
    is_full: bool = False
    rank: int = 8
    targets: frozenset[str] = frozenset(ATTENTION[:3])
    trained_share: float = 1.0
    extra_trained: int = 0
    has_dora: bool = False
    recompute: str = NONE
    states: int = 2
    engine: str = "none"
    world_size: int = 1
    keeps_attention: bool = True
    labels: int | None = None
    is_host: bool = False
    trains_norms: bool = False
    saved: frozenset[str] = frozenset()
    freezes_head: bool = False
    largest_trained: int | None = None
    dropout: float = 0.0
    longest: int = 0
    keeps_inputs: bool = False
    has_fused: bool = True
    host_optimizer: str = ""
    own_buffers: tuple[str, float, float] | None = None
    more_a_token: float = 0.0
    more_a_pair: float = 0.0
    more_backward: float = 0.0
    more_backward_a_pair: float = 0.0
    more_again: float = 0.0
    more_again_a_pair: float = 0.0
    num_idle: int = 0
    is_alone: bool = False
    num_adapted: int = 0

    @property
    def keeps_normed(self) -> bool:
        """Return whether norms keep their output, see models/norm.py; ZeRO-3 trains with the model's own."""
        is_frozen = not self.is_full and not self.trains_norms
        is_ours = self.has_fused and not self.engine.startswith("zero3")
        return is_frozen and is_ours and self.is_host and self.itemsize == FP32

    @property
    def keeps_adapters_whole(self) -> bool:
        """Return whether each device has all adapters, see parallel/fsdp.py."""
        return self.engine.startswith("fsdp2") and not self.is_full

    @property
    def read_by(self) -> frozenset[str]:
        """Return the matrices whose inputs are read by what is trained of them; not looked at with `is_full`."""
        return self.targets | self.saved

    @property
    def has_any_head(self) -> bool:
        """Return whether the head is more than a linear layer, and autograd keeps its steps a chunk at a time."""
        return not self.is_full and "lm_head" in self.read_by

    @property
    def has_peft_layers(self) -> bool:
        """Return whether adapters compute as in peft, not in models/lora_linear.py."""
        return not self.is_full and (self.has_dora or not self.has_fused)

    @property
    def num_labels(self) -> int:
        """Return the labelled tokens."""
        return self.tokens if self.labels is None else self.labels


def projections(g: Sizes, *, is_dense: bool = False) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of each projection of a layer that can have an adapter.

    Args:
        is_dense: of a layer of an expert model that has the plain MLP.
    """
    query, key = g.heads * g.dim, g.kv_heads * g.dim
    width = g.shared_intermediate if g.experts and not is_dense else g.intermediate
    found = {
        "q_proj": (g.hidden, query),
        "k_proj": (g.hidden, key),
        "v_proj": (g.hidden, key),
        "o_proj": (query, g.hidden),
    }
    if g.has_joined_qkv:
        found = {"q_proj": (g.hidden, query + 2 * key), "o_proj": (query, g.hidden)}
    if g.kv_rank:  # latent attention: queries have one entry for two matrices, keys and values two
        rank = g.query_rank
        found["q_proj"] = (g.hidden + rank, rank + query) if rank else (g.hidden, query)
        found["k_proj"] = (g.hidden, g.kv_rank + g.rope_dim)
        found["v_proj"] = (g.kv_rank, g.heads * (g.dim - g.rope_dim + g.value_dim))
        found["o_proj"] = (g.heads * g.value_dim, g.hidden)
    if width:
        found |= {
            "gate_proj": (g.hidden, width),
            "up_proj": (g.hidden, width),
            "down_proj": (width, g.hidden),
        }
    if not g.is_gated:
        found.pop("gate_proj", None)
    return found


def num_adapter_parameters(g: Sizes, s: Setting) -> int:
    """Return the parameters that LoRA adds: rank (inputs + outputs) a matrix, and the outputs again for DoRA."""
    if s.is_full or s.num_adapted:
        return s.num_adapted
    num_dense = g.dense_layers if g.experts else 0
    names = s.targets - set(MLP) if adapts_experts(g, s) else s.targets
    sizes = [size for name, size in projections(g).items() if name in names] * (g.layers - num_dense)
    sizes += [size for name, size in projections(g, is_dense=True).items() if name in names] * num_dense
    sizes += [(g.hidden, g.vocab)] * len(s.targets & set(ENDS))
    plain = sum(s.rank * (inputs + outputs) + s.has_dora * outputs for inputs, outputs in sizes)
    return plain + _num_of_experts(g, s)


def adapts_experts(g: Sizes, s: Setting) -> bool:
    """Return whether adapters of the MLP are those of the experts' joint matrices, and of no other MLP."""
    return g.adapts_experts and not s.is_full and bool(s.targets & set(MLP))


def _num_of_experts(g: Sizes, s: Setting) -> int:
    """Return the parameters of such adapters: gate and up are one matrix, whose adapter has twice the rank."""
    if not adapts_experts(g, s):
        return 0
    inner = g.expert_intermediate
    an_expert = 2 * s.rank * (g.hidden + 2 * inner) * ("up_proj" in s.targets)
    an_expert += s.rank * (inner + g.hidden) * ("down_proj" in s.targets)
    return (g.layers - g.dense_layers) * g.experts * an_expert


def num_trained(g: Sizes, s: Setting) -> int:
    """Return how many numbers the optimizer trains."""
    if s.is_full:
        return round(g.num_parameters * s.trained_share)
    return num_adapter_parameters(g, s) + s.extra_trained


def trains_head(s: Setting) -> bool:
    """Return whether the head gets a gradient."""
    if not s.is_full:
        return "lm_head" in s.saved
    return s.trained_share > 0 and not s.freezes_head
