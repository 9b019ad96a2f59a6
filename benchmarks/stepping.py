"""One training step of swiftlet and of transformers with peft, and the operations that a step cannot do without."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from workload import Size, draw_lengths, model_config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = {
    "padded": "transformers and peft on a padded batch with full logits",
    "padded-gc": "the same, recomputing each layer in the backward pass",
    "liger": "padded with the kernels of Liger (CUDA), nothing recomputed",
    "liger-gc": "with the kernels of Liger, recomputing each layer",
    "ours": "packed, labelled positions in chunks, fused",
    "ours-graphs": "ours, its passes recorded and replayed as graphs of the device",
    "ours-plain": "packed, labelled positions in chunks, peft's LoRA and the model's own operators",
    "ours-partial": "ours, recomputing normalised values and up in the backward pass",
    "ours-gc": "ours, recomputing each layer in the backward pass",
}
IGNORE_INDEX = -100


class Setting(NamedTuple):
    """What a step trains, and where."""

    size: Size
    vocabulary: int
    dtype: torch.dtype = torch.float32
    tuner: str = "lora"  # or full
    dropout: float = 0.05
    device: str = "cpu"


class Samples(NamedTuple):
    """Token ids and labels of a batch, one tensor a sample."""

    ids: list[Tensor]
    labels: list[Tensor]

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return sum(map(len, self.ids))


def draw_samples(lengths: list[int], vocabulary: int, seed: int = 0) -> Samples:
    """Return random samples of these lengths; the second half of each is labelled."""
    random = np.random.default_rng(seed)
    ids = [torch.from_numpy(random.integers(3, vocabulary, length)) for length in lengths]
    labels = [part.clone() for part in ids]
    for part in labels:
        part[: len(part) // 2] = IGNORE_INDEX
    return Samples(ids, labels)


def chat_samples(number: int, vocabulary: int) -> Samples:
    """Return samples of the lengths of chats."""
    return draw_samples(draw_lengths(number), vocabulary)


def build_model(setting: Setting) -> nn.Module:
    """Return a random Qwen2, with LoRA r 8 on all linear layers (adapters in fp32) or trained whole."""
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    config = model_config(setting.size, setting.vocabulary)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(setting.dtype)  # a 7B model never exists in fp32
    with torch.device(setting.device):
        model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if setting.tuner == "full":
        return model.train()
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=setting.dropout, target_modules="all-linear")
    tuned = get_peft_model(model, lora)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned.train()


def build_decoder(setting: Setting) -> nn.Module:
    """Return the same as `build_model`, of the modules that `swift sft` trains."""
    from swiftlet.models.decoder import RMSNorm, decoder_class, frequencies
    from swiftlet.models.decoder_config import config_of
    from swiftlet.models.tuner import LoraSettings, apply_lora

    config = config_of(model_config(setting.size, setting.vocabulary).to_dict())
    assert config is not None
    with torch.device("meta"):
        model = decoder_class(config.model_type)(config)
    model = model.to(setting.dtype).to_empty(device=setting.device)
    angles = frequencies(config.rope, config.head_dim).to(setting.device)
    model.model.register_buffer("inv_freq", angles, persistent=False)
    torch.manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, RMSNorm):
                nn.init.ones_(parameter)
            elif name == "bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)
    if setting.tuner == "full":
        return model.train()
    settings = LoraSettings(rank=8, alpha=32, dropout=setting.dropout, target_modules=("ALL",))
    return apply_lora(model, settings).train()  # type: ignore[arg-type]


def padded_step(model: nn.Module, samples: Samples, device: str) -> Callable[[], Tensor]:
    """Return the step of the field's defaults: padding, logits of all positions, cross entropy in fp32."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad(samples.ids, batch_first=True).to(device)
    labels = pad(samples.labels, batch_first=True, padding_value=IGNORE_INDEX).to(device)
    mask = pad([torch.ones_like(part) for part in samples.ids], batch_first=True).to(device)
    count = sum(int((part[1:] != IGNORE_INDEX).sum()) for part in samples.labels)

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach() * count

    return step


def packed_step(
    model: nn.Module,
    samples: Samples,
    device: str,
    *,
    is_partial: bool = False,
    is_recorded: bool = False,
    **options: Any,
) -> Callable[[], Tensor]:
    """Return our step, with the operators of the device where it has some."""
    from swiftlet.device.spec import open_device
    from swiftlet.models.causal import apply_partial_checkpointing, build_causal

    there = open_device(device, local_rank=0, environ={})
    causal = build_causal(model, kernels=there.kernels, share_prefixes=not is_recorded, **options)
    if is_recorded:
        from swiftlet.models.recording import obstacle, record_passes

        reason = obstacle(causal.train())
        if there.capture is None or reason:
            raise ModuleNotFoundError(reason or f"{there.name} has no recorder")
        record_passes(causal, there.capture, print)
    if is_partial:
        apply_partial_checkpointing(causal)
    causal.train()
    ids, targets = torch.cat(samples.ids).to(device), torch.cat(samples.labels).roll(-1)
    lengths = [len(part) for part in samples.ids]
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    cu_seqlens = [0, *np.cumsum(lengths).tolist()]
    count = sum(int((part != IGNORE_INDEX).sum()) for part in samples.labels)

    def step() -> Tensor:
        losses = causal(ids, positions, cu_seqlens, targets, mask_seed=1)
        (losses.loss_sum / count).backward()
        return losses.loss_sum.detach()

    return step


def build_step(variant: str, setting: Setting, samples: Samples) -> Callable[[], Tensor]:
    """Return one step of a variant over a model of its own: gradients cleared, forward, backward.

    Raises:
        ModuleNotFoundError: the variant needs a package that is not installed.
    """
    if variant.startswith("liger"):
        if importlib.util.find_spec("liger_kernel") is None:
            raise ModuleNotFoundError("liger-kernel is not installed")
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2

        apply_liger_kernel_to_qwen2()
    from swiftlet.models.causal import apply_checkpointing

    is_own = variant.startswith("ours") and variant != "ours-plain"
    model = build_decoder(setting) if is_own else build_model(setting)
    is_recomputing = variant.endswith("-gc")
    if variant.startswith("ours"):
        inner = packed_step(
            model,
            samples,
            setting.device,
            use_fused=variant != "ours-plain",
            gradient_checkpointing=is_recomputing,
            is_partial=variant == "ours-partial",
            is_recorded=variant == "ours-graphs",
        )
    else:
        if is_recomputing:
            base = model.get_base_model() if setting.tuner == "lora" else model  # type: ignore[operator]
            apply_checkpointing(base)
        inner = padded_step(model, samples, setting.device)

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        return inner()

    return step


def floor_flops(setting: Setting, samples: Samples) -> float:
    """Return the operations that a step cannot do without; recomputed ones are none of them.

    LoRA: 4 N a token, N the parameters of the layers' matrices; full: 6 N. Causal attention; the head at labelled
    positions alone.
    """
    size, factor = setting.size, 4 if setting.tuner == "lora" else 6
    lengths = [len(part) for part in samples.ids]
    num_labels = sum(int((part != IGNORE_INDEX).sum()) for part in samples.labels)
    # Scores and their product with the values: 4 h s forward and 2.5 times that backward, half of it causal.
    scores = size.layers * sum(0.5 * 3.5 * 4 * size.hidden * length**2 for length in lengths)
    head = factor * size.hidden * setting.vocabulary * num_labels
    return factor * size.linear_parameters * sum(lengths) + scores + head


def clock(device: str) -> float:
    """Return seconds: of this process's processors for a CPU, of the wall for an accelerator that has finished."""
    if device == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def gemm_rate(dtype: torch.dtype, device: str = "cpu", edge: int = 1024, repeats: int = 4) -> float:
    """Return the rate of a square product [FLOP/s], the best of some."""
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)
    best = float("inf")
    for _ in range(repeats):
        start = clock(device)
        torch.mm(left, right)
        best = min(best, clock(device) - start)
    return 2 * edge**3 / best
