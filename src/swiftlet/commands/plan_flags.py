"""What flags of sft mean to a plan: the setting that shapes its memory, and the engines that go with the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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
OF_ONE_LAYER = re.compile(r"\.\d+\.")


def setting_of(args: Any, sizes: Geometry, world_size: int, itemsize: int) -> Setting:
    """Return what of the arguments shapes memory; tokens are filled in for each way to run."""
    tuner, train = args.tuner, args.train
    frozen_share, num_idle = _frozen(tuner, sizes)
    return Setting(
        itemsize=itemsize,
        tokens=1,
        is_full=tuner.sft_type == "full",
        rank=tuner.lora_rank,
        targets=_targets(tuner.lora_target_modules),
        trained_share=1 - frozen_share,
        num_idle=num_idle,
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
        saves_head="lm_head" in tuner.lora_modules_to_save,
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


def _frozen(tuner: Any, sizes: Geometry) -> tuple[float, int]:
    """Return what a full run does not train, by name and from the bottom: a share, and its whole first layers.

    Names are those of most families; of a prefix that begins otherwise, or inside a layer, nothing is known.
    """
    total = sizes.num_parameters
    table = sizes.vocab * sizes.hidden
    layers = total - table * (1 if sizes.tied else 2) - sizes.hidden
    parts: list[tuple[str, float]] = [("model.embed_tokens.", table)]
    parts += [(f"model.layers.{number}.", layers / sizes.layers) for number in range(sizes.layers)]
    parts += [("model.norm.", sizes.hidden), ("lm_head.", 0 if sizes.tied else table)]
    limit, passed, frozen, num_whole = tuner.freeze_parameters_ratio * total, 0.0, 0.0, 0
    for at, (name, size) in enumerate(parts):
        below = min(max(limit - passed, 0.0), size)
        held = size if name.startswith(tuple(tuner.freeze_parameters)) else below
        num_whole += held == size and num_whole == at
        frozen += held
        passed += size
    return frozen / total, min(max(num_whole - 1, 0), sizes.layers)
