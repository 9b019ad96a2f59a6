"""Which models' training passes are recorded (graphs.py), and how such a pass computes its losses.

Only what is known to the last operator is: our own decoder, a frozen head, attention that reads the boundaries of
samples from the device, and masks that follow from the tokens; anything else could record a number of the host.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from swiftlet.device.kernels import DeviceAttention
from swiftlet.device.spec import Capture
from swiftlet.models.causal import CausalLM
from swiftlet.models.cross_entropy import is_plain, linear_cross_entropy
from swiftlet.models.decoder import Backbone
from swiftlet.models.dropout import active_p
from swiftlet.models.graphs import Graphs, Pass
from swiftlet.models.head import backbone
from swiftlet.models.sharing import PackedInputs


def obstacle(causal: CausalLM) -> str | None:
    """Return why the passes of a model cannot be recorded, None where they can."""
    module, head, attention = backbone(causal.model), causal.head, causal.attention
    trained = [one for one in causal.model.parameters() if one.requires_grad]
    if not isinstance(module, Backbone) or not causal.is_packed:
        return "the model is none of swiftlet's own modules"
    if head is None or not is_plain(head) or any(one.requires_grad for one in head.module.parameters()):
        return "the head is trained, or no plain matrix"
    if not isinstance(attention, DeviceAttention):
        return "the attention is told of its samples by the host"
    layer: Any = module.layers[0]
    if not attention.is_fit(module.embed_tokens.weight.dtype, layer.self_attn.head_dim):
        return "the attention kernel does not take these heads"
    if len({(one.dtype, one.device) for one in trained}) != 1 or module.embed_tokens.weight.requires_grad:
        return "weights of several types or the embedding are trained"
    has_dropout = any(active_p(one) > 0 for one in causal.model.modules() if isinstance(one, nn.Dropout))
    if has_dropout and not causal.keys.of_device:
        return "masks of dropout do not follow from the tokens"
    if causal.shares_prefixes or causal.is_recomputed or module.embed_tokens._forward_hooks:
        return "equal beginnings are shared, layers are recomputed, or noise is added"
    return None


def record_passes(
    causal: CausalLM,
    capture: Capture,
    log: Callable[[str], object] = lambda message: None,
) -> None:
    """Let the training passes of a model be recorded and played; it must have no `obstacle`."""
    trained = [one for one in causal.model.parameters() if one.requires_grad]
    causal.graphs = Graphs(partial(pass_losses, causal), capture, trained, log)


def pass_losses(causal: CausalLM, reads: Pass) -> tuple[Tensor, Tensor]:
    """Return what `linear_cross_entropy` does of a pass, whose tensors are read again when it is played."""
    samples = PackedInputs(reads.input_ids_T, reads.position_ids_T, reads.boundaries, causal.attention)
    causal.keys.begin(reads.input_ids_T, reads.position_ids_T, reads.seed, None, reads.wanted_W)
    causal.copies.begin()
    hidden_WH = causal.wanted_states(samples, reads.wanted_W)
    assert causal.head is not None
    return linear_cross_entropy(hidden_WH, reads.targets_W, causal.head, reads.counted_W)
