"""The model of a run, tuned and as far as its checkpoint was, and the engine that trains it."""

from __future__ import annotations

from typing import Any

import torch

from swiftlet import log
from swiftlet.commands.operators import choose_kernels
from swiftlet.commands.sft import Ready
from swiftlet.device.spec import Device, resolve_dtype
from swiftlet.models import tuner
from swiftlet.models.causal import CausalLM, build_causal
from swiftlet.models.load import load_model
from swiftlet.parallel.ddp import build_ddp_engine
from swiftlet.parallel.engine import Engine, build_single_engine
from swiftlet.parallel.world import World
from swiftlet.train.optim import OptimizerSettings, build_groups, build_optimizer


def build_model(args: Any, ready: Ready, device: Device) -> CausalLM:
    """Return the model with what is trained in it: loaded, tuned, and as far as its checkpoint was."""
    checkpoint, settings = ready.checkpoint, args.tuner
    is_full = settings.sft_type == "full"
    folder = checkpoint.path if checkpoint is not None and is_full else ready.source.folder
    dtype = resolve_dtype(args.model.dtype, device)
    log.info(f"{ready.source.name} from {ready.source.folder}: {dtype}, {device.name}")
    model = load_model(
        folder, dtype=dtype, device=device.torch_device, trust_remote_code=args.model.trust_remote_code
    )
    torch.manual_seed(args.train.seed)
    if is_full:
        tuner.apply_full(
            model, freeze_parameters=settings.freeze_parameters, freeze_ratio=settings.freeze_parameters_ratio
        )
    elif checkpoint is not None:
        model = tuner.load_adapter(model, checkpoint.path, is_trainable=True)
    else:
        model = tuner.apply_lora(model, lora_settings(settings))
    kernels = choose_kernels(
        device,
        model.config,
        ready.data.train.lengths,
        dtype,
        attention=args.model.use_flash_attn,
        others=args.model.fused_operators,
    )
    return build_causal(
        model,
        use_fused=args.model.fused_operators != "false",
        gradient_checkpointing=args.train.gradient_checkpointing == "true",
        neftune_alpha=settings.neftune_noise_alpha,
        kernels=kernels,
        log=log.info,
    )


def lora_settings(args: Any) -> tuner.LoraSettings:
    """Return what the flags of the tuner say about adapters."""
    return tuner.LoraSettings(
        rank=args.lora_rank,
        alpha=args.lora_alpha,
        dropout=args.lora_dropout_p,
        bias=args.lora_bias_trainable,
        target_modules=args.lora_target_modules,
        modules_to_save=args.lora_modules_to_save,
        use_dora=args.use_dora,
        use_rslora=args.use_rslora,
        init_weights=args.init_lora_weights,
    )


def build_engine(args: Any, model: CausalLM, device: Device, world: World) -> Engine:
    """Return the engine that trains the model on these devices, with its optimizer."""
    train_args = args.train
    settings = OptimizerSettings(
        learning_rate=train_args.learning_rate,
        weight_decay=train_args.weight_decay,
        beta1=train_args.adam_beta1,
        beta2=train_args.adam_beta2,
        epsilon=train_args.adam_epsilon,
    )
    groups = build_groups(model.model, settings)
    if args.tuner.lora_lr_ratio is not None:
        groups = tuner.parameter_groups_lora_plus(
            model.model,
            learning_rate=settings.learning_rate,
            ratio=args.tuner.lora_lr_ratio,
            weight_decay=settings.weight_decay,
        )
    optimizer = build_optimizer(train_args.optim, groups, settings, device.optimizers)
    if world.is_alone:
        return build_single_engine(model.model, optimizer)
    return build_ddp_engine(model.model, optimizer, world)
