"""The project's own training step on fake tensors: its peak of live bytes without weights and without a device.

The model is built without memory, tuned by `models.tuner`, and goes through the same `build_causal`, engine and
`compute_gradient` as in `swift sft`; only the values are missing. Tensors are fake ones of the processor, so operators
of another device (its attention, its dropout) are those of the processor here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swiftlet.commands.model_setup import lora_settings
from swiftlet.commands.planning import Subject
from swiftlet.config.fields import with_values
from swiftlet.data.batching import MicroBatch, Step
from swiftlet.data.loader import LoadedStep
from swiftlet.device.spec import DTYPES
from swiftlet.models import tuner
from swiftlet.models.causal import apply_partial_checkpointing, build_causal
from swiftlet.models.geometry import Geometry
from swiftlet.models.head import decoder_layers
from swiftlet.models.load import build_config
from swiftlet.models.safety import CONFIG, read_config
from swiftlet.parallel.engine import build_single_engine
from swiftlet.parallel.world import World
from swiftlet.plan.live import LiveBytes
from swiftlet.plan.memory import estimate
from swiftlet.plan.setting import FULL, PARTIAL, Setting
from swiftlet.train.objective import compute_gradient
from swiftlet.train.optim import OptimizerSettings, build_groups, build_optimizer


class NotSeen(Exception):
    """The layers of a model cannot be looked at without its weights; the message says why."""


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
    return build_config(folder, read_config(folder), trust_remote_code=False)[0]


def kinds_of(folder: Path) -> list[Any]:
    """Return what tells the kind of each layer of a folder's model: its parameters, and what config.json says.

    Raises:
        NotSeen: the model does not say which modules are its layers.
    """
    config = config_in(folder)
    layers = decoder_layers(_empty(config))
    if not layers:
        raise NotSeen("the model names no layers")
    says = getattr(config.get_text_config(), "layer_types", None) or [None] * len(layers)
    return [
        (kind, type(layer), *((name, weight.shape) for name, weight in layer.named_parameters()))
        for layer, kind in zip(layers, says, strict=False)
    ]


def with_layers(config: Any, number: int) -> Any:
    """Cut a configuration to its first layers, in place, with the lists that have an entry a layer."""
    text = config.get_text_config()
    whole = text.num_hidden_layers
    text.num_hidden_layers = number
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == whole:
            setattr(text, name, value[:number])
    return config


def num_shown(kinds: list[Any]) -> tuple[int, int]:
    """Return how many first layers show each kind, at least two, and after how many layers the kinds come again."""
    first = max(2, max(kinds.index(kind) for kind in kinds) + 1)
    rest = range(first, len(kinds))
    again = (n for n in range(1, first + 1) if all(kinds[at] == kinds[at - n] for at in rest))
    return min(first, len(kinds)), next(again, max(1, len(kinds) - first))


def build_empty(config: Any, args: Any, dtype: torch.dtype, settings: Any) -> nn.Module:
    """Return the tuned model without memory for its weights.

    Args:
        settings: of LoRA; None trains all parameters as `args` says.
    """
    model = _empty(config).to(dtype)
    with torch.device("meta"):
        if settings is not None:
            return tuner.apply_lora(model, settings)
        tuner.apply_full(
            model, freeze_parameters=args.freeze_parameters, freeze_ratio=args.freeze_parameters_ratio
        )
    return model


def _empty(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    with torch.device("meta"):
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)


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


@contextmanager
def quiet() -> Iterator[None]:
    """Let no warning be shown meanwhile."""
    with warnings.catch_warnings():
        # Of torch on fake tensors, and of transformers on names that it changes.
        warnings.simplefilter("ignore")
        yield


def trace_step(model: nn.Module, args: Any, lengths: list[int], *, num_labels: int) -> Traced:
    """Return the bytes of one optimizer step over one micro-batch, the optimizer's state being there already.

    Args:
        model: as `build_empty` returns it; it cannot be used afterwards.
        args: the arguments of sft, resolved.
        lengths: tokens of the samples of the micro-batch.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    live = LiveBytes(num_labels=num_labels)
    with quiet():
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


def compare(subject: Subject, setting: Setting, num_tokens: int, recompute: str) -> tuple[float, float]:
    """Return (traced, analytical) bytes of a step of one process over a micro-batch of samples of equal length.

    Args:
        setting: of the run.
    """
    args = with_values(subject.args, gradient_checkpointing=recompute)
    number = max(1, round(num_tokens / max(1, subject.longest)))
    lengths = [num_tokens // number] * (number - 1)
    lengths.append(num_tokens - sum(lengths))
    layers, folder = subject.sized.geometry.layers, folder_with_config(subject)
    first, period = num_shown(kinds_of(folder) if folder else [None] * layers)
    few = (first, first + period) if layers > first + period else (layers,)
    found = [_traced_bytes(subject, args, lengths, num_layers) for num_layers in few]
    traced = found[0] + (layers - few[0]) / period * (found[-1] - found[0])
    dtype = DTYPES[subject.dtype]
    setting = replace(
        setting,
        tokens=num_tokens,
        recompute=recompute,
        world_size=1,
        labels=num_tokens - number,
        longest=max(lengths),
        engine="none",
        is_host=True,
        keeps_inputs=False,
        keeps_attention=dtype == torch.float32,
    )
    return float(traced), estimate(subject.sized.geometry, setting).needed


def folder_with_config(subject: Subject) -> Path | None:
    """Return the folder of a subject's model where its config.json is in it."""
    folder: Path | None = subject.sized.folder
    return folder if folder is not None and (folder / CONFIG).is_file() else None


def _traced_bytes(subject: Subject, args: Any, lengths: list[int], num_layers: int) -> int:
    folder = folder_with_config(subject)
    config = with_layers(config_in(folder) if folder else config_of(subject.sized.geometry), num_layers)
    settings = None if args.tuner.sft_type == "full" else lora_settings(args.tuner)
    model = build_empty(config, args.tuner, DTYPES[subject.dtype], settings)
    traced = trace_step(model, args, lengths, num_labels=sum(lengths) - len(lengths))
    return traced.resident + traced.peak
