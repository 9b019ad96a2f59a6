"""Which modules --lora_target_modules and --lora_modules_to_save mean in a given model, whatever its architecture.

DEFAULT is found by the names that projections of queries, keys and values have in the families, fused or not; ALL is
every linear layer but the head. A name that is in no module is an error that says what there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from swiftlet.errors import UsageError, suggest

QKV = re.compile(
    r"^(q|k|v|qkv|query|key|value|c_attn|att_proj)$"
    r"|^((q|k|v|qkv|qk|kv|query|key|value|w_?q|w_?k|w_?v|w_?qkv|w_pack)(_proj|_lin|_linear)?)$"
    r"|^(query_key_value|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|in_proj_qkv\w*)$",
    re.IGNORECASE,
)
# Layers that take the matrix of these past an adapter, which would learn nothing: Gemma 3n's (clamped in training) and
# dt_proj always, the others of state spaces where their fused kernels are installed. Source: transformers, the modeling
# files of these names.
READ_PAST: dict[str, set[str]] = {
    "jamba": {"dt_proj"},
    **dict.fromkeys(("gemma3n", "gemma3n_text"), {"correction_coefs"}),
    **dict.fromkeys(("falcon_mamba", "mamba"), {"x_proj", "dt_proj", "out_proj"}),
    **dict.fromkeys(
        ("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"), {"out_proj"}
    ),
}
# What no gradient of a loss over text reaches: parts that see images or hear sound, and indexers, which only choose the
# tokens that a sparse attention sees.
UNREACHED = re.compile(r"(^|\.)(indexer\.|(embed_)?(vision|visual|image|img|audio|speech|multi_?modal))")
# kinds of layers derived from torch's linear one that do not multiply by their matrix: its forward is not theirs
OWN_PRODUCT = re.compile("Router|Grouped")
KEYWORDS = ("DEFAULT", "ALL", "EMBEDDING", "LN", "AUTO")


def linear_names(model: nn.Module) -> list[str]:
    """Return the full names of all linear layers but the head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [name for name, module in model.named_modules() if module is not head and is_linear(module)]


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies by one matrix: torch's, GPT-2's Conv1D, or a quantised kind.

    Some that are derived from torch's layer give more than a product, or other products.
    """
    kind = type(module).__name__
    is_known = kind in ("Conv1D", "QuantLinear") or kind.endswith("QuantLinear")
    is_known = is_known or (isinstance(module, nn.Linear) and not OWN_PRODUCT.search(kind))
    return is_known or ("Linear" in kind and hasattr(module, "qweight"))


def resolve_targets(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the modules that get adapters, as short names where a short name means these modules and no others.

    Args:
        names: DEFAULT, ALL, EMBEDDING, or names of modules (`q_proj`, `layers.0.mlp.up_proj`), mixed at will.

    Raises:
        UsageError: a name matches nothing that can have an adapter.
    """
    linear = [full for full in linear_names(model) if not (_is_read_past(model, full) or is_unreached(full))]
    chosen: set[str] = set()
    for name in names:
        chosen |= set(_named(model, linear, name))
    if not chosen:
        raise UsageError("--lora_target_modules is empty", "use DEFAULT, ALL, EMBEDDING or names of modules")
    return _shortest(model, chosen, before=".")


def _named(model: nn.Module, linear: list[str], name: str) -> list[str]:
    flag = "--lora_target_modules"
    if name.upper() == "ALL":
        return linear
    if name.upper() == "EMBEDDING":
        return [_name_of(model, model.get_input_embeddings())]  # type: ignore[operator]
    if name.upper() in ("DEFAULT", "AUTO"):
        found = [full for full in linear if QKV.match(full.rpartition(".")[2])]
        if not found:
            raise UsageError(
                f"{flag} DEFAULT: {type(model).__name__} names no projection of queries, keys or values",
                f"use ALL, or names out of: {', '.join(_last_parts(linear))}",
            )
        return found
    able = [
        full
        for full, module in model.named_modules()
        if is_linear(module) or isinstance(module, nn.Embedding)
    ]
    found = [full for full in able if full == name or full.endswith(f".{name}")]
    if not found:
        raise UsageError(
            f"{flag} {name}: no layer of {type(model).__name__} has this name",
            suggest(name, [*_last_parts(able), *KEYWORDS[:3]]),
        )
    if any(_is_read_past(model, full) for full in found):
        raise UsageError(
            f"{flag} {name}: {type(model).__name__} reads the matrix of this layer past an adapter, which would learn "
            "nothing",
            f"use ALL, or names out of: {', '.join(_last_parts(linear))}",
        )
    reached = [full for full in found if not is_unreached(full)]
    if not reached:
        raise UsageError(
            f"{flag} {name}: no loss over text reaches this layer of {type(model).__name__}, so an adapter would learn "
            "nothing",
            f"use ALL, or names out of: {', '.join(_last_parts(linear))}",
        )
    return reached


def is_unreached(full: str) -> bool:
    """Return whether the name of a module or parameter says that no gradient of a loss over text gets there."""
    return UNREACHED.search(full) is not None


def _is_read_past(model: nn.Module, full: str) -> bool:
    kind = str(getattr(model.config, "model_type", ""))
    return full.rpartition(".")[2] in READ_PAST.get(kind, ())


def resolve_saved(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the modules that are trained and saved whole: EMBEDDING, LN (all norms), lm_head, or names.

    Raises:
        UsageError: a name matches no module.
    """
    modules = dict(model.named_modules())
    chosen: set[str] = set()
    for name in names:
        if name.upper() == "EMBEDDING":
            found = [_name_of(model, model.get_input_embeddings())]  # type: ignore[operator]
        elif name.upper() == "LN":
            found = [full for full, module in modules.items() if is_norm(module)]
        elif name == "lm_head":
            found = [_name_of(model, model.get_output_embeddings())]  # type: ignore[operator]
        else:
            found = [full for full in modules if full and (full == name or full.endswith(f".{name}"))]
        if not found:
            parts = _last_parts(
                full for full, module in modules.items() if next(module.parameters(False), None) is not None
            )
            raise UsageError(
                f"--lora_modules_to_save {name}: no module of {type(model).__name__} has this name",
                f"use EMBEDDING, LN, lm_head, or one of: {', '.join(parts)}",
            )
        chosen |= set(found)
    return _shortest(model, chosen, before="") if chosen else []


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm with weights of its own."""
    return "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), torch.Tensor)


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _last_parts(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})


def _shortest(model: nn.Module, chosen: set[str], before: str) -> list[str]:
    """Return last parts of names where they mean chosen modules only, full names elsewhere.

    Args:
        before: what peft wants before a part; of modules trained whole nothing: there `norm` is `input_layernorm` too.
    """
    names = [f".{name}" for name, _ in model.named_modules()]
    result = set()
    for name in chosen:
        last = name.rpartition(".")[2]
        is_clear = not last.isdigit() and chosen.issuperset(
            one[1:] for one in names if one.endswith(before + last)
        )
        result.add(last if is_clear else name)
    return sorted(result)
