"""What flags of sft mean to a plan: the setting that shapes its memory, and the engines that go with the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from swiftlet.config.check_engines import ENGINE_RULES
from swiftlet.config.deepspeed import offloaded, own_buffers, zero_stage
from swiftlet.config.fields import with_values
from swiftlet.models.geometry import Geometry
from swiftlet.plan.setting import ATTENTION, ENDS, MLP, NONE, Setting, projections
from swiftlet.plan.strategies import FLAGS

# Numbers that an optimizer keeps a parameter; fused AdamW needs no temporary copy.
STATES = {"sgd": 0, "adafactor": 0, "adagrad": 1, "rmsprop": 1}
# What matrices of other builds are in the place of.
SAME = dict.fromkeys(("qkv_proj", "wqkv", "W_pack", "query_key_value", "c_attn"), ATTENTION[:3])
SAME |= {"gate_up_proj": MLP[:2], "dense_h_to_4h": MLP[:2], "w1": MLP[:1], "w3": MLP[1:2], "w2": MLP[2:]}
SAME |= {"fc1": MLP[1:2], "c_fc": MLP[1:2], "fc2": MLP[2:], "c_proj": MLP[2:], "dense_4h_to_h": MLP[2:]}
SAME |= {"dense": ATTENTION[3:], "wo": ATTENTION[3:], "q_a_proj": ATTENTION[:1], "q_b_proj": ATTENTION[:1]}
SAME |= {"kv_a_proj_with_mqa": ATTENTION[1:2], "kv_b_proj": ATTENTION[2:3]}
OF_ONE_LAYER, LAYER = re.compile(r"\.\d+\."), re.compile(r"model\.layers\.\d+\.")


def setting_of(args: Any, sizes: Geometry, world_size: int, itemsize: int) -> Setting:
    """Return what of the arguments shapes memory; tokens are filled in for each way to run."""
    tuner, train = args.tuner, args.train
    is_full = tuner.sft_type == "full"
    frozen, saved = _frozen(tuner, sizes), _targets(tuner.lora_modules_to_save)
    return Setting(
        itemsize=itemsize,
        tokens=1,
        is_full=is_full,
        rank=tuner.lora_rank,
        targets=_targets(tuner.lora_target_modules),
        trained_share=1 - frozen.share,
        num_idle=frozen.num_idle,
        freezes_head=frozen.has_head,
        largest_trained=frozen.largest_trained if is_full else _largest_saved(saved, sizes),
        extra_trained=_saved_whole(tuner.lora_modules_to_save, sizes),
        has_dora=tuner.use_dora,
        recompute=NONE if train.gradient_checkpointing == "AUTO" else train.gradient_checkpointing,
        states=STATES.get(train.optim, 2),
        engine=_engine(args.parallel),
        host_optimizer=_host_optimizer(args.parallel),
        own_buffers=_own_buffers(args.parallel, sizes),
        has_fused=args.model.fused_operators != "false",
        world_size=world_size,
        keeps_attention=True,
        trains_norms=any(name == "LN" or "norm" in name for name in tuner.lora_modules_to_save),
        saved=saved,
        dropout=0.0 if is_full else tuner.lora_dropout_p,
    )


def engines_of(args: Any) -> tuple[str, ...]:
    """Return the engines with which sft takes the other flags; without one it takes what it was given."""
    plain = {"deepspeed": None, "fsdp": None, "gradient_checkpointing": NONE}

    def is_taken(flags: Sequence[str]) -> bool:
        tried = with_values(args, **(plain | {flags[0].removeprefix("--"): flags[1]}))
        return not any(rule(tried, frozenset()) for rule in ENGINE_RULES)

    return tuple(name for name, flags in FLAGS.items() if not flags or is_taken(flags))


def _engine(parallel: Any) -> str:
    """Return the name of the engine in plans."""
    if parallel.deepspeed:
        if zero_stage(parallel.deepspeed) != 3:
            return "zero2"
        return "zero3-offload" if offloaded(parallel.deepspeed) == {"param", "optimizer"} else "zero3"
    return next((name for name, flags in FLAGS.items() if parallel.fsdp in flags), "none")


def _host_optimizer(parallel: Any) -> str:
    """Return the engine where settings of DeepSpeed leave the optimizer, and no weights, in the host's memory."""
    offloads = offloaded(parallel.deepspeed) if parallel.deepspeed else set()
    return _engine(parallel) if offloads == {"optimizer"} else ""


def _own_buffers(parallel: Any, sizes: Geometry) -> tuple[str, float, float] | None:
    found = own_buffers(parallel.deepspeed, sizes.hidden) if parallel.deepspeed else None
    return (_engine(parallel), *found) if found is not None else None


def _targets(names: Sequence[str]) -> frozenset[str]:
    known = {
        "DEFAULT": ATTENTION[:3],
        "AUTO": ATTENTION[:3],
        "ALL": (*ATTENTION, *MLP),
        "EMBEDDING": ("embed_tokens",),
        "MLP": MLP,
        "SELF_ATTN": ATTENTION,
    }
    chosen: set[str] = set()
    for name in names:
        last = name.rpartition(".")[2]
        chosen |= set(known.get(name.upper(), SAME.get(last, (last,))))
    return frozenset(chosen)


def _saved_whole(names: Sequence[str], sizes: Geometry) -> int:
    """Return the parameters of modules trained whole beside the adapters; of names that differ by model none."""
    table = sizes.vocab * sizes.hidden
    ends = dict.fromkeys(ENDS, table) | {"norm": sizes.hidden}
    ends |= {"EMBEDDING": table, "LN": sizes.hidden * (sizes.layers * sizes.norms + 1)}
    matrices = {name: inputs * outputs for name, (inputs, outputs) in projections(sizes).items()}
    matrices |= {"self_attn": sizes.attention_parameters, "mlp": sizes.mlp_parameters(sizes.layers - 1)}
    number = 0
    for name in names:
        last = name.upper() if name.upper() in ends else name.rpartition(".")[2]
        number += ends.get(last, 0) + matrices.get(last, 0) * (
            1 if OF_ONE_LAYER.search(name) else sizes.layers
        )
    return number


class Frozen(NamedTuple):
    """What a full run does not train (a share, whole first layers, the head), and the largest tensor that it does."""

    share: float
    num_idle: int
    has_head: bool
    largest_trained: int


def _frozen(tuner: Any, sizes: Geometry) -> Frozen:
    """Return what a full run does not train, by name and from the bottom, a tensor at a time as models/tuner.py does.

    Names are those of most families; of a prefix that begins otherwise nothing is known.
    """
    tensors = _tensors(sizes)
    total, passed, frozen, largest, num_whole = sizes.num_parameters, 0, 0, 0, 0
    trained: set[str] = set()
    for name, size in tensors:
        passed += size
        if passed <= tuner.freeze_parameters_ratio * total or name.startswith(tuple(tuner.freeze_parameters)):
            frozen += size
        else:
            trained.add(layer[0] if (layer := LAYER.match(name)) else name)
            largest = max(largest, size)
    parts = ["model.embed_tokens.weight", *(f"model.layers.{number}." for number in range(sizes.layers))]
    num_whole = next((at for at, part in enumerate(parts) if part in trained), len(parts))
    head = "model.embed_tokens.weight" if sizes.tied else "lm_head.weight"
    return Frozen(frozen / total, max(num_whole - 1, 0), head not in trained, largest)


def _tensors(sizes: Geometry) -> list[tuple[str, int]]:
    """Return names and numbers of a model's tensors in its order; what a layer has beside matrices is one of them."""
    table = sizes.vocab * sizes.hidden
    a_layer = (sizes.num_parameters - table * (1 if sizes.tied else 2) - sizes.hidden) // sizes.layers
    matrices = {
        f"{'mlp' if name in MLP else 'self_attn'}.{name}.weight": inputs * outputs
        for name, (inputs, outputs) in projections(sizes).items()
    }
    rest = a_layer - sum(matrices.values())
    matrices["mlp.experts" if sizes.experts else "input_layernorm.weight"] = max(0, rest)
    found = [("model.embed_tokens.weight", table)]
    for number in range(sizes.layers):
        found += [(f"model.layers.{number}.{name}", size) for name, size in matrices.items()]
    found.append(("model.norm.weight", sizes.hidden))
    return found if sizes.tied else [*found, ("lm_head.weight", table)]


def _largest_saved(saved: frozenset[str], sizes: Geometry) -> int:
    """Return the numbers of the largest matrix trained whole beside the adapters."""
    matrices = {name: inputs * outputs for name, (inputs, outputs) in projections(sizes).items()}
    matrices |= dict.fromkeys(ENDS, sizes.vocab * sizes.hidden)
    return max((matrices.get(name, 0) for name in saved), default=0)
