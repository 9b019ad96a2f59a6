"""Where each figure of a plan is from: one line a part of the memory, in numbers that can be multiplied again."""

from __future__ import annotations

from swiftlet.plan.cards import Card
from swiftlet.plan.chosen import setting_of_way
from swiftlet.plan.head import head_chunk
from swiftlet.plan.memory import CUT, GIB, SHARDED, zero_buffers
from swiftlet.plan.setting import FULL, NONE, PARTIAL, Setting, num_adapter_parameters, num_trained
from swiftlet.plan.sizes import Sizes
from swiftlet.plan.strategies import LEAST_SLACK, MOST_SLACK, SLACK_SHARE, Job, Way

AGAIN = {
    NONE: "",
    PARTIAL: ": normalised values and up made again",
    FULL: ": inputs kept, one layer made again",
}
MATRICES_OF_FSDP = "layers, embedding and head, whole while they are used"


def sources_of(job: Job, way: Way) -> dict[str, str]:
    """Return where the bytes of each part are from, by the names of `Memory`."""
    g, s = job.sizes, setting_of_way(job, way)
    is_off, is_cut = s.engine.endswith("offload"), s.engine in CUT
    in_host = "in the host's memory"
    whole = in_host if is_off else f"/ {s.world_size} devices" if is_cut else "on each device"
    share = f"/ {s.world_size} devices" if s.engine in SHARDED else "on each device"
    share = "on each device, as each has all adapters" if s.keeps_adapters_whole else share
    buckets, live = zero_buffers(g, s)
    trained = f"{num_trained(g, s):,} trained numbers"
    copy = " and a copy" if s.engine.startswith("zero") else ""
    ranks = f"rank {s.rank} on {', '.join(sorted(name.removesuffix('_proj') for name in s.targets))}"
    return {
        "weights": f"{g.num_parameters:,} parameters x {s.itemsize} bytes {whole}",
        "adapters": f"{num_adapter_parameters(g, s):,} parameters x 4 bytes: {ranks}",
        "gradients": f"{trained} {share}",
        "optimizer": f"{trained} x {s.states} moments{copy} {in_host if s.engine == s.host_optimizer else share}",
        "buckets": f"gradients on their way: {buckets:.3g} numbers x {s.itemsize} bytes",
        "gathered": MATRICES_OF_FSDP
        if s.engine.startswith("fsdp2")
        else f"up to {live:.3g} live parameters, two layers arriving",
        "activations": _of_activations(g, s),
        "logits": "a chunk of {:,} labels x {:,} words, above the peak of the layers".format(
            *head_chunk(g, s)
        ),
        "compiled": "products of bf16, compiled for their shapes and kept",
    }


def _of_activations(g: Sizes, s: Setting) -> str:
    micro_batch = f"the largest micro-batch, {s.tokens:,} tokens x {g.layers} layers"
    scores = ", with the scores of their attention" if g.has_plain_scores and not s.is_host else ""
    return micro_batch + scores + AGAIN[s.recompute]


def reserved_source() -> str:
    """Return what the allocator is expected to keep."""
    most, least = MOST_SLACK / GIB, LEAST_SLACK / 2**20
    return f"+ {SLACK_SHARE:.0%} of the last parts, {least:.0f} MiB to {most:.1f} GiB: the allocator"


def visible_source(card: Card, world_size: int) -> str:
    """Return what the device's own tool counts beside this process's tensors."""
    parts = [f"{card.idle_gib:g} when idle", f"{card.context_gib:g} process"]
    parts += [f"{card.communicator_gib:g} communicators"] if world_size > 1 else []
    return f"+ {', '.join(parts)} (table of devices)"
