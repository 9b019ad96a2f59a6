"""The model of a run, tuned and as far as its checkpoint was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from swiftlet import log
from swiftlet.commands.operators import choose_kernels
from swiftlet.commands.sft import Setup
from swiftlet.config.check_engines import is_sharded
from swiftlet.device.spec import Device, resolve_dtype
from swiftlet.errors import UsageError
from swiftlet.models import tuner
from swiftlet.models.adapter import load_adapter, plain_fields
from swiftlet.models.causal import CausalLM, apply_partial_checkpointing, build_causal
from swiftlet.models.hollow import hollow_copies
from swiftlet.models.load import load_model, load_plain
from swiftlet.models.recording import obstacle, record_passes


def build_model(setup: Setup) -> CausalLM:
    """Return the model with what is trained in it: loaded, tuned, and as far as its checkpoint was."""
    args, ready, device, _ = setup
    checkpoint, settings = ready.checkpoint, args.tuner
    is_full, is_hollow = settings.sft_type == "full", is_sharded(args)
    folder = weights_folder(setup)
    dtype = resolve_dtype(args.model.dtype, device)
    log.info(f"{ready.source.name} from {ready.source.folder}: {dtype}, {device.name}")
    if is_plain(setup):
        model = load_plain(folder, dtype=dtype, device=device.torch_device)
    else:
        model = load_model(
            folder,
            dtype=dtype,
            device=device.torch_device,
            trust_remote_code=args.model.trust_remote_code,
            hollow=is_hollow,
        )
    _say_router(model)
    torch.manual_seed(args.train.seed)
    if is_full:
        tuner.apply_full(
            model, freeze_parameters=settings.freeze_parameters, freeze_ratio=settings.freeze_parameters_ratio
        )
    elif checkpoint is not None:
        model = load_adapter(model, checkpoint.path, is_trainable=True)
    else:
        model = tuner.apply_lora(model, lora_settings(settings))
        if any(name.upper() == "ALL" for name in settings.lora_target_modules):
            _say_frozen(model)
        if is_hollow:
            hollow_copies(model)
    kernels = choose_kernels(
        device,
        model.config,
        ready.data.train.lengths,
        dtype,
        attention=args.model.use_flash_attn,
        others=args.model.fused_operators,
    )
    causal = build_causal(
        model,
        use_fused=args.model.fused_operators != "false",
        gradient_checkpointing=args.train.gradient_checkpointing == "true",
        neftune_alpha=settings.neftune_noise_alpha,
        share_prefixes=args.data.share_prefixes != "false",
        kernels=kernels,
        log=log.info,
    )
    if args.train.gradient_checkpointing == "partial":
        apply_partial_checkpointing(causal, log.info)
    _capture(args, causal, device)
    return causal


def _capture(args: Any, causal: CausalLM, device: Device) -> None:
    """Let passes be recorded where that was asked for.

    Raises:
        UsageError: they cannot be.
    """
    if not args.model.graph_capture:
        return
    if device.capture is None:
        raise UsageError(f"--graph_capture: {device.name} records no passes", "leave it out")
    reason = obstacle(causal)
    if reason is not None:
        raise UsageError(f"--graph_capture: {reason}", "leave it out")
    record_passes(causal, device.capture, log.warning)
    log.info("training passes are recorded as graphs and replayed (--graph_capture)")


def _say_router(model: Any) -> None:
    """Say that a loss of the router that config.json asks for is not added, as transformers would in training."""
    config = model.config.get_text_config()
    weight = getattr(config, "router_aux_loss_coef", 0)
    if getattr(config, "output_router_logits", False) and weight:
        log.warning(
            f"config.json asks for a loss that balances experts (output_router_logits, router_aux_loss_coef {weight}): "
            "it is not added, the loss is that of the trained tokens alone"
        )


def _say_frozen(model: Any) -> None:
    frozen = tuner.frozen_matrices(model)
    if frozen:
        names = sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in frozen})
        log.info(
            f"--lora_target_modules ALL: {len(frozen)} matrices or stacks of matrices have no adapter and stay frozen: "
            f"{', '.join(names)}"
        )


def is_plain(setup: Setup) -> bool:
    """Return whether a run asks no more of its model than the losses of whole or plainly adapted weights."""
    args, checkpoint = setup.args, setup.ready.checkpoint
    if is_sharded(args) or args.train.predict_with_generate or args.model.trust_remote_code:
        return False
    if args.tuner.sft_type == "full":
        return True
    if checkpoint is not None:
        return plain_fields(checkpoint.path) is not None
    return tuner.is_plain(lora_settings(args.tuner))


def needs_even_passes(args: Any, model: CausalLM) -> bool:
    """Return whether each micro-batch has to be one sample: every pass gathers weights, so ranks make as many passes.

    Ranks have as many micro-batches as each other; one of a model that cannot pack takes a pass for each sample.
    """
    return is_sharded(args) and not model.is_packed


def weights_folder(setup: Setup) -> Path:
    """Return the folder of the weights that training starts from: the base model's, or those of a full checkpoint."""
    checkpoint, is_full = setup.ready.checkpoint, setup.args.tuner.sft_type == "full"
    return checkpoint.path if checkpoint is not None and is_full else setup.ready.source.folder


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
