"""What of a model is trained: adapters through peft, or its own parameters. Everything else is frozen.

Adapters are kept in fp32 when the base is in a shorter type. PiSSA and OLoRA start from the base's own directions and
leave the rest in the base; what is saved is the plain difference to the original base (`start.py`), so that any
program can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from swiftlet.config.lora import is_taken_from_base, start_mistake
from swiftlet.errors import UsageError, first_line, suggest
from swiftlet.models.adapter import adapted_weight, quiet_peft
from swiftlet.models.decoder import Decoder
from swiftlet.models.decoder_lora import AdaptedDecoder, LoraFields, adapt, are_plain_targets
from swiftlet.models.head import inner_model
from swiftlet.models.start import keep_start
from swiftlet.models.targets import is_linear, is_unreached, resolve_saved, resolve_targets

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

OF_ADAPTERS = ("lora_", "original_module", "modules_to_save")


@dataclass(frozen=True)
class LoraSettings:
    """What the flags say about adapters; names as the user wrote them."""

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.05
    bias: str = "none"
    target_modules: tuple[str, ...] = ("DEFAULT",)
    modules_to_save: tuple[str, ...] = ()
    use_dora: bool = False
    use_rslora: bool = False
    init_weights: str = "true"


def is_plain(settings: LoraSettings) -> bool:
    """Return whether our own adapters do: no other start, kind or bias, and none for an embedding or a head."""
    return not (
        settings.init_weights.lower() != "true"
        or settings.use_dora
        or settings.bias != "none"
        or settings.modules_to_save
        or not are_plain_targets(settings.target_modules)
    )


def apply_lora(model: PreTrainedModel | Decoder, settings: LoraSettings) -> PeftModel | AdaptedDecoder:
    """Freeze the model and put new adapters into it; their start is drawn from torch's global generator.

    Raises:
        UsageError: a module, a start or a combination that does not exist.
    """
    init = settings.init_weights.lower()
    mistake = start_mistake(init, rank=settings.rank, use_dora=settings.use_dora)
    if mistake is not None:
        raise mistake
    if isinstance(model, Decoder):
        targets = resolve_targets(model, settings.target_modules)
        return adapt(
            model,
            LoraFields(settings.rank, settings.alpha, settings.dropout, targets, settings.use_rslora),
        )
    if getattr(model.config, "quantization_config", None):
        raise UsageError(
            "a quantised model is for swift infer, not for training", "use the model it was made from"
        )
    return _wrap(model, settings, init)


def _wrap(model: PreTrainedModel, settings: LoraSettings, init: str) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    targets = resolve_targets(model, settings.target_modules)
    saved = resolve_saved(model, settings.modules_to_save)
    both = sorted(set(targets) & set(saved))
    if both:
        raise UsageError(
            f"{', '.join(both)} cannot have an adapter and be trained whole", "leave it out of one flag"
        )
    is_transposed = _is_transposed(model, targets)
    if is_transposed and init == "olora":
        raise UsageError(f"--init_lora_weights olora does not go with {type(model).__name__}", "use pissa")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        bias=settings.bias,  # type: ignore[arg-type]
        target_modules=targets,
        modules_to_save=saved or None,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        init_lora_weights=True if init == "true" else init,  # type: ignore[arg-type]
        fan_in_fan_out=is_transposed,
    )
    originals = _base_weights(model, targets, init) if is_taken_from_base(init) else {}
    try:
        with quiet_peft():
            wrapped: Any = get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, AttributeError) and not config.target_parameters:
            raise
        raise _refused(model, settings, bool(config.target_parameters), error) from error
    if originals:
        keep_start(wrapped, originals)
    return wrapped


def _refused(model: nn.Module, settings: LoraSettings, has_experts: bool, error: Exception) -> UsageError:
    """Return what to say where peft refuses; on joint matrices of experts it does only plain LoRA without dropout."""
    asked, reason = " ".join(settings.target_modules), first_line(error)
    if not has_experts:
        return UsageError(
            f"--lora_target_modules {asked} does not go with {type(model).__name__}: {reason}",
            "use DEFAULT, ALL, or other names",
        )
    return UsageError(
        f"--lora_target_modules {asked} means the joint matrices of the experts of {type(model).__name__}, "
        f"whose adapters know no dropout, DoRA or other start: {reason}",
        "--lora_dropout_p 0 --use_dora false --init_lora_weights true, or --lora_target_modules DEFAULT",
    )


def frozen_matrices(model: nn.Module) -> list[str]:
    """Return the names of the matrices without an adapter, of linear layers but the head and of stacks of experts."""
    if isinstance(model, AdaptedDecoder):
        return []
    from peft.tuners.lora import LoraLayer

    inner = inner_model(model)
    known = [adapted_weight(layer) for layer in model.modules() if isinstance(layer, LoraLayer)]
    head = inner.get_output_embeddings()
    known += head.parameters() if head is not None else ()
    ids = {id(parameter) for parameter in known}
    return [
        f"{name}.{last}"
        for name, module in inner.named_modules()
        if not any(part in name for part in OF_ADAPTERS)
        for last, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in ids and _is_matrix(module, parameter)
    ]


def _is_matrix(module: nn.Module, parameter: Tensor) -> bool:
    is_stack = parameter.ndim == 3 and not isinstance(module, nn.Conv1d)
    return is_stack or (parameter.ndim == 2 and is_linear(module))


def _base_weights(model: nn.Module, targets: Sequence[str], init: str) -> dict[int, Tensor]:
    """Return the weights that the start is taken from, by the id of their module; OLoRA changes them in place."""
    wanted = tuple(targets)
    modules = [
        module for name, module in model.named_modules() if name.endswith(wanted) and is_linear(module)
    ]
    is_copied = init == "olora"
    return {id(module): module.weight.data.clone() if is_copied else module.weight.data for module in modules}  # type: ignore[union-attr,operator]


def _is_transposed(model: nn.Module, targets: Sequence[str]) -> bool:
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith(tuple(targets))}
    return "Conv1D" in kinds


def apply_full(model: nn.Module, *, freeze_parameters: Sequence[str] = (), freeze_ratio: float = 0.0) -> int:
    """Train all parameters but those frozen by name prefix or by share from the bottom; return how many are frozen.

    What no loss over text reaches is frozen too: it would take the memory of what is trained, and would only decay.

    Args:
        freeze_ratio: whole tensors are frozen in the order of the model while they make up no more than this share.

    Raises:
        UsageError: a prefix matches nothing, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for prefix in freeze_parameters:
        if not any(name.startswith(prefix) for name in parameters):
            starts = sorted({".".join(name.split(".")[:2]) for name in parameters})
            raise UsageError(f"--freeze_parameters {prefix}: no parameter begins so", suggest(prefix, starts))
    limit, passed, frozen = freeze_ratio * sum(p.numel() for p in parameters.values()), 0, 0
    for name, parameter in parameters.items():
        passed += parameter.numel()
        is_frozen = passed <= limit or name.startswith(tuple(freeze_parameters)) or is_unreached(name)
        parameter.requires_grad_(not is_frozen)
        frozen += parameter.numel() if is_frozen else 0
    if all(not parameter.requires_grad for parameter in parameters.values()):
        raise UsageError(
            "nothing is left to train", "freeze less with --freeze_parameters, --freeze_parameters_ratio"
        )
    return frozen


def parameter_groups_lora_plus(
    model: nn.Module, *, learning_rate: float, ratio: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the trained parameters in groups whose B matrices learn `ratio` times as fast; vectors do not decay.

    Source: Hayou et al. 2024, LoRA+ (arXiv 2402.12354), section 4: the rate of B over that of A.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_b = "lora_B" in name or "lora_embedding_B" in name
            decay = 0.0 if parameter.ndim < 2 else weight_decay
            groups.setdefault((learning_rate * (ratio if is_b else 1.0), decay), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def describe_parameters(model: nn.Module) -> str:
    """Return the line that people look for: trained and all parameters and their share."""
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = 100 * trained / max(every, 1)
    return f"trainable params: {trained:,} || all params: {every:,} || trainable%: {share:.4f}"
