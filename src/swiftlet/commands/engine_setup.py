"""The engine of a run: one device, replicas, FSDP2 or DeepSpeed, with the optimizer over what each rank holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from swiftlet import log
from swiftlet.commands.model_setup import weights_folder
from swiftlet.commands.sft import Setup
from swiftlet.config.check_engines import is_sharded
from swiftlet.config.deepspeed import Facts, deepspeed_settings, zero_stage
from swiftlet.device.spec import dtype_name, resolve_dtype
from swiftlet.models import tuner
from swiftlet.models.causal import CausalLM
from swiftlet.models.head import decoder_layers, let_inputs_need_gradients, own_embedding
from swiftlet.models.hollow import open_weights
from swiftlet.parallel.ddp import build_ddp_engine
from swiftlet.parallel.engine import Engine, Groups, Trained, build_single_engine
from swiftlet.train.optim import LIGHT, OptimizerSettings, build_groups, build_optimizer

OFFLOAD = "full_shard_offload"


class Trainer(NamedTuple):
    """An engine, and the module whose call is the forward pass of a step."""

    engine: Engine
    module: nn.Module


def build_engine(setup: Setup, model: CausalLM) -> Trainer:
    """Return the engine that trains the model on these devices, with its optimizer."""
    args, _, device, world = setup
    settings = _optimizer_settings(args.train)
    groups = _groups(args, model, settings)

    def optimizer(found: Groups) -> Any:
        return build_optimizer(args.train.optim, found, settings, device.optimizers)

    if not args.parallel.deepspeed and not args.parallel.fsdp:
        light = build_optimizer(args.train.optim, groups, settings, {**LIGHT, **device.optimizers})
        if world.is_alone:
            return Trainer(build_single_engine(model.model, light), model)
        return Trainer(build_ddp_engine(model.model, light, world), model)
    dtype = resolve_dtype(args.model.dtype, device)
    names = {parameter: name for name, parameter in model.model.named_parameters()}
    named = [{**group, "params": [names[p] for p in group["params"]]} for group in groups]
    adapters = [name for p, name in names.items() if p.requires_grad and ".lora_" in name]
    trained = Trained(named, adapters, optimizer)
    sources = open_weights(model.model, weights_folder(setup)) if is_sharded(args) else {}
    if args.parallel.deepspeed:
        return _deepspeed(setup, model, trained, dtype, sources)
    from swiftlet.parallel.fsdp import build_fsdp_engine

    engine = build_fsdp_engine(
        model,
        [*own_embedding(model.model), *decoder_layers(model.model)],
        sources,
        trained,
        world=world,
        dtype=dtype,
        is_offloaded=args.parallel.fsdp == OFFLOAD,
    )
    return Trainer(engine, model)


def _deepspeed(
    setup: Setup, model: CausalLM, trained: Trained, dtype: torch.dtype, sources: Mapping[str, Any]
) -> Trainer:
    from swiftlet.parallel import deepspeed

    args, _, device, world = setup
    facts = Facts(
        batch_size=args.train.batch_size,
        accumulation=args.train.gradient_accumulation_steps,
        world_size=world.world_size,
        max_grad_norm=args.train.max_grad_norm,
        dtype=dtype_name(dtype),
        hidden_size=model.model.config.get_text_config().hidden_size,
        can_overlap=world.num_nodes == 1 or device.can_overlap_between_nodes,
    )
    settings = deepspeed_settings(args.parallel.deepspeed, facts)
    if zero_stage(args.parallel.deepspeed) == 3:
        head = model.head
        shared = list(head.module.parameters()) if head is not None else []
        deepspeed.partition(model, decoder_layers(model.model), shared, sources, settings)
        let_inputs_need_gradients(model.model)
        model.head = head._replace(is_gathered=True) if head is not None else None
    if not facts.can_overlap:
        _tell_overlap(settings["zero_optimization"])
    engine = deepspeed.build_deepspeed_engine(model, settings, trained, world=world, dtype=dtype)
    return Trainer(engine, engine.runner)


def _tell_overlap(zero: dict[str, Any]) -> None:
    """Say whether collectives run beside the computation where that spoils values; DeepSpeed's default is stage 3."""
    if zero.get("overlap_comm", zero["stage"] == 3):
        log.warning(
            "overlap_comm is on by the settings of --deepspeed: it gives NaN between nodes of these devices"
        )
    else:
        log.info("overlap_comm is off: it gives NaN between nodes of these devices")


def _optimizer_settings(train: Any) -> OptimizerSettings:
    return OptimizerSettings(
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        beta1=train.adam_beta1,
        beta2=train.adam_beta2,
        epsilon=train.adam_epsilon,
    )


def _groups(args: Any, model: CausalLM, settings: OptimizerSettings) -> Groups:
    if args.tuner.lora_lr_ratio is None:
        return build_groups(model.model, settings)
    return tuner.parameter_groups_lora_plus(
        model.model,
        learning_rate=settings.learning_rate,
        ratio=args.tuner.lora_lr_ratio,
        weight_decay=settings.weight_decay,
    )
