"""What does not go together with sharding: rules over the arguments of sft that concern its engine."""

from __future__ import annotations

from typing import Any

from swiftlet.config.deepspeed import zero_stage
from swiftlet.config.lora import is_taken_from_base
from swiftlet.errors import UsageError


def _engine(args: Any) -> str:
    return "--deepspeed" if args.parallel.deepspeed else "--fsdp"


def is_sharded(args: Any) -> bool:
    """Return whether no process holds the whole model."""
    asked = args.parallel.deepspeed
    return bool(args.parallel.fsdp) or (bool(asked) and zero_stage(asked) == 3)


def no_matrix_statistics(args: Any, given: frozenset[str]) -> UsageError | None:
    """Refuse an optimizer that needs whole matrices where the optimizer sees parts of them."""
    is_cut = bool(args.parallel.deepspeed) or (bool(args.parallel.fsdp) and args.tuner.sft_type == "full")
    if args.train.optim != "adafactor" or not is_cut:
        return None
    return UsageError(
        f"--optim adafactor needs whole matrices, {_engine(args)} gives it parts", "type --optim adamw_torch"
    )


def no_start_from_base(args: Any, given: frozenset[str]) -> UsageError | None:
    """Refuse adapters that are computed from the base's weights where no process has them whole."""
    is_taken = is_taken_from_base(args.tuner.init_lora_weights.lower())
    if not is_sharded(args) or not (is_taken or args.tuner.use_dora):
        return None
    flag = "--use_dora" if args.tuner.use_dora else f"--init_lora_weights {args.tuner.init_lora_weights}"
    return UsageError(
        f"{flag} is computed from whole weights, with {_engine(args)} no process has them",
        "leave it out, or use --deepspeed default-zero2",
    )


def no_generation(args: Any, given: frozenset[str]) -> UsageError | None:
    """Refuse to generate while training where each step of an answer would gather the whole model."""
    if not args.train.predict_with_generate or not is_sharded(args):
        return None
    return UsageError(
        f"--predict_with_generate does not go with {_engine(args)}: no process has the whole model",
        "leave it out, and type swift infer --ckpt_dir CHECKPOINT --load_dataset_config true afterwards",
    )


def no_fp16(args: Any, given: frozenset[str]) -> UsageError | None:
    """Refuse fp16 under DeepSpeed, which would skip steps by itself to find a scale for the loss."""
    if args.model.dtype != "fp16" or not args.parallel.deepspeed:
        return None
    return UsageError("--dtype fp16 does not go with --deepspeed", "type --dtype bf16 or --dtype fp32")


def no_whole_model_in_fp16(args: Any, given: frozenset[str]) -> UsageError | None:
    """Refuse to train weights in fp16, whose gradients, and their squares all the more, are rounded to 0."""
    if args.model.dtype != "fp16" or args.parallel.deepspeed:
        return None
    is_full, is_whole = args.tuner.sft_type == "full", not is_sharded(args)
    flags = {
        "--sft_type full": is_full,
        "--lora_modules_to_save": is_whole and not is_full and bool(args.tuner.lora_modules_to_save),
        "--lora_bias_trainable": is_whole and not is_full and args.tuner.lora_bias_trainable != "none",
    }
    found = [flag for flag, is_there in flags.items() if is_there]
    if not found:
        return None
    return UsageError(
        f"--dtype fp16 does not go with {', '.join(found)}: squares of gradients are too small for fp16",
        "type --dtype bf16 or --dtype fp32, or train only adapters of linear layers, which are fp32",
    )


def no_partial_recomputing(args: Any, given: frozenset[str]) -> UsageError | None:
    """Refuse to note, for the backward pass, weights that are there during a layer's own passes alone."""
    asked = args.parallel.deepspeed
    if args.train.gradient_checkpointing != "partial" or not asked or zero_stage(asked) != 3:
        return None
    return UsageError(
        f"--gradient_checkpointing partial does not go with --deepspeed {asked}: ZeRO-3 takes weights away in between",
        "type --gradient_checkpointing true, or --fsdp full_shard instead of --deepspeed",
    )


def no_graphs(args: Any, given: frozenset[str]) -> UsageError | None:
    """Refuse to record passes in which something happens that no recording holds."""
    if not args.model.graph_capture:
        return None
    others = {
        "--deepspeed": args.parallel.deepspeed,
        "--fsdp": args.parallel.fsdp,
        "--sft_type full": args.tuner.sft_type == "full",
        "--neftune_noise_alpha": args.tuner.neftune_noise_alpha is not None,
        "--gradient_checkpointing true": args.train.gradient_checkpointing == "true",
        "--share_prefixes true": args.data.share_prefixes == "true",
        "--packing false": not args.data.packing,
    }
    found = [flag for flag, is_there in others.items() if is_there]
    if not found:
        return None
    return UsageError(
        f"--graph_capture does not go with {', '.join(found)}: it records passes of adapters on a GPU",
        "leave it out",
    )


ENGINE_RULES = (
    no_matrix_statistics,
    no_start_from_base,
    no_generation,
    no_fp16,
    no_whole_model_in_fp16,
    no_partial_recomputing,
    no_graphs,
)
