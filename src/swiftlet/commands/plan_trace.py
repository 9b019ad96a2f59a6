"""The project's own training step on fake tensors: its peak of live bytes without weights and without a device.

The model is built without memory, tuned by `models.tuner`, and goes through the same `build_causal`, engine and
`compute_gradient` as in `swift sft`; only the values are missing. Tensors are fake ones of the processor, so operators
of another device (its attention, its dropout) are those of the processor here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swiftlet.commands.model_setup import lora_settings
from swiftlet.commands.plan_flags import setting_of
from swiftlet.commands.planning import ITEMSIZES, Subject
from swiftlet.config.fields import with_values
from swiftlet.data.batching import MicroBatch, Step
from swiftlet.data.loader import LoadedStep
from swiftlet.device.spec import DTYPES
from swiftlet.models import tuner
from swiftlet.models.causal import apply_partial_checkpointing, build_causal
from swiftlet.models.geometry import Geometry
from swiftlet.models.safety import CONFIG, for_library, read_config
from swiftlet.parallel.engine import build_single_engine
from swiftlet.parallel.world import World
from swiftlet.plan.live import LiveBytes
from swiftlet.plan.memory import estimate
from swiftlet.plan.setting import FULL, PARTIAL
from swiftlet.train.objective import compute_gradient
from swiftlet.train.optim import OptimizerSettings, build_groups, build_optimizer

FEW_LAYERS = (2, 3)  # traced where a model has more: memory grows evenly with each further layer


class Traced(NamedTuple):
    """Bytes of a step: what stays, and the peak above it; kernels and moved bytes of one micro-batch."""

    resident: int
    peak: int
    num_kernels: int
    moved: int


def config_of(g: Geometry) -> Any:
    """Return a configuration of transformers that has these sizes, of the nearest architecture."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = "qwen3" if g.qk_norm else "qwen2" if g.qkv_bias else "llama"
    more: dict[str, Any] = {}
    if g.experts:
        kind = "qwen3_moe" if g.qk_norm else "qwen2_moe" if g.qkv_bias else "mixtral"
        more = {
            "num_experts": g.experts,
            "num_local_experts": g.experts,
            "num_experts_per_tok": g.active_experts,
            "moe_intermediate_size": g.expert_intermediate,
            "shared_expert_intermediate_size": g.shared_intermediate,
        }
    intermediate = g.expert_intermediate if kind == "mixtral" else g.intermediate
    return CONFIG_MAPPING[kind](
        hidden_size=g.hidden,
        num_hidden_layers=g.layers,
        num_attention_heads=g.heads,
        num_key_value_heads=g.kv_heads,
        head_dim=g.dim,
        intermediate_size=intermediate,
        vocab_size=g.vocab,
        tie_word_embeddings=g.tied,
        **more,
    )


def config_in(folder: Path) -> Any:
    """Return the configuration of a model's folder, as transformers knows the architecture."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    raw: Mapping[str, Any] = read_config(folder)
    return CONFIG_MAPPING[raw["model_type"]].from_dict(for_library(dict(raw)))


def build_empty(config: Any, args: Any, dtype: torch.dtype, settings: Any) -> nn.Module:
    """Return the tuned model without memory for its weights.

    Args:
        settings: of LoRA; None trains all parameters as `args` says.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    with torch.device("meta"):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).to(dtype)
        if settings is not None:
            return tuner.apply_lora(model, settings)
        tuner.apply_full(
            model, freeze_parameters=args.freeze_parameters, freeze_ratio=args.freeze_parameters_ratio
        )
    return model


def give_fake_tensors(model: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors of the processor into a model of the meta device; shared weights stay shared."""
    made: dict[int, nn.Parameter] = {}
    with mode:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made.setdefault(id(parameter), nn.Parameter(empty, parameter.requires_grad))
                    module._parameters[name] = made[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def trace_step(model: nn.Module, args: Any, lengths: list[int], *, num_labels: int) -> Traced:
    """Return the bytes of one optimizer step over one micro-batch, the optimizer's state being there already.

    Args:
        model: as `build_empty` returns it; it cannot be used afterwards.
        args: the arguments of sft, resolved.
        lengths: tokens of the samples of the micro-batch.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    live = LiveBytes(num_labels=num_labels)
    with warnings.catch_warnings():
        # Of torch on fake tensors, and of transformers on names that it changes.
        warnings.simplefilter("ignore")
        give_fake_tensors(model, mode)
        with mode, live:
            for tensor in (*model.parameters(), *model.buffers()):
                live.add(tensor)
            return _run(model, args, lengths, num_labels, live)


def _run(model: nn.Module, args: Any, lengths: list[int], num_labels: int, live: LiveBytes) -> Traced:
    causal = build_causal(
        model,
        use_fused=args.model.fused_operators != "false",
        gradient_checkpointing=args.train.gradient_checkpointing == FULL,
    )
    if args.train.gradient_checkpointing == PARTIAL:
        apply_partial_checkpointing(causal)
    causal.train()
    settings = OptimizerSettings(learning_rate=1e-4)
    optimizer = build_optimizer(args.train.optim, build_groups(model, settings), settings)
    engine = build_single_engine(model, optimizer)
    ids_T = torch.zeros(sum(lengths), dtype=torch.long)
    ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    batch = MicroBatch(ids_T, ids_T, ids_T, [0, *ends], list(range(len(lengths))))
    step = Step(0, 0, batch.sample_ids, len(ids_T), num_labels, [batch.sample_ids])
    resident = kernels = moved = 0
    for _ in range(2):  # the second one has the optimizer's state from its beginning
        resident = live.live
        live.reset_peak()
        before = live.num_kernels, live.moved
        compute_gradient(
            causal,
            engine,
            World(),
            LoadedStep(step, [batch]),
            device=torch.device("cpu"),
            step=1,
            is_stop_requested=False,
        )
        kernels, moved = live.num_kernels - before[0], live.moved - before[1]
        engine.update(args.train.max_grad_norm)
    return Traced(resident, live.peak - resident, kernels, moved)


def compare(subject: Subject, num_tokens: int, recompute: str) -> tuple[float, float]:
    """Return (traced, analytical) bytes of a step of one process over a micro-batch of samples of equal length."""
    args = with_values(subject.args, gradient_checkpointing=recompute)
    number = max(1, round(num_tokens / max(1, subject.longest)))
    lengths = [num_tokens // number] * (number - 1)
    lengths.append(num_tokens - sum(lengths))
    layers = subject.sized.geometry.layers
    few = FEW_LAYERS if layers > FEW_LAYERS[1] else (layers,)
    found = [_traced_bytes(subject, args, lengths, num_layers) for num_layers in few]
    traced = found[0] + (layers - few[0]) * (found[-1] - found[0])
    dtype = DTYPES[subject.dtype]
    setting = replace(
        setting_of(args, subject.sized.geometry, 1, ITEMSIZES[subject.dtype]),
        tokens=num_tokens,
        labels=num_tokens - number,
        longest=max(lengths),
        engine="none",
        is_host=True,
        keeps_attention=dtype == torch.float32,
    )
    return float(traced), estimate(subject.sized.geometry, setting).needed


def _traced_bytes(subject: Subject, args: Any, lengths: list[int], num_layers: int) -> int:
    sized = subject.sized
    has_config = sized.folder is not None and (sized.folder / CONFIG).is_file()
    config = config_in(sized.folder) if has_config else config_of(sized.geometry)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    settings = None if args.tuner.sft_type == "full" else lora_settings(args.tuner)
    model = build_empty(config, args.tuner, DTYPES[subject.dtype], settings)
    traced = trace_step(model, args, lengths, num_labels=sum(lengths) - len(lengths))
    return traced.resident + traced.peak
