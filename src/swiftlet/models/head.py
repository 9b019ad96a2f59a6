"""Where a causal model of transformers keeps its backbone and its head, and what follows the head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.models.cross_entropy import Head

SMALLEST_TOLERANCE = 1e-4


def inner_model(model: nn.Module) -> Any:
    """Return the causal model of transformers inside adapters of peft, or the model itself."""
    get_base = getattr(model, "get_base_model", None)
    return model if get_base is None else get_base()


def backbone(model: nn.Module) -> Any:
    """Return the part of a causal model that gives hidden states, with the adapters in it."""
    return inner_model(model).base_model


def find_head(model: nn.Module) -> Head | None:
    """Return how a model computes logits, or None where it does so in a way of its own.

    Source: Gemma 2 and RecurrentGemma cap the logits, Cohere multiplies, Granite divides, Falcon-H1 multiplies.
    """
    inner = inner_model(model)
    module = inner.get_output_embeddings()
    if module is None:
        return None
    text = inner.config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
    divisor = getattr(text, "logits_scaling", None) or 1.0
    factor = getattr(text, "logit_scale", None) or 1.0
    factor *= getattr(text, "lm_head_multiplier", None) or 1.0
    return Head(module, factor / divisor, softcap)


def is_its_head(model: nn.Module, head: Head) -> bool:
    """Return whether `head` over the backbone gives the logits of the model itself, tried on two tokens.

    As near as the type allows: a cap that is not known changes small logits by little.
    """
    inner = inner_model(model)
    ids = torch.arange(2, device=head_device(head))[None]
    with tried(model):
        own = inner(input_ids=ids, use_cache=False).logits.float()
        outputs = inner.base_model(input_ids=ids, use_cache=False)
        hidden = getattr(outputs, "last_hidden_state", None)
        if hidden is None or hidden.ndim != 3:
            return False
        ours = head.logits(hidden).float()
    tolerance = max(SMALLEST_TOLERANCE, 2.5 * torch.finfo(next(inner.parameters()).dtype).eps)
    return ours.shape == own.shape and is_near(ours, own, tolerance)


@contextmanager
def tried(module: nn.Module) -> Iterator[None]:
    """Let a module compute without dropout and without a gradient meanwhile."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def is_near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether values agree within a share of the largest; never where what is expected is not finite."""
    largest = float(expected.abs().max())
    return math.isfinite(largest) and torch.allclose(
        found, expected, rtol=tolerance, atol=tolerance * largest
    )


def is_same_answer(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Return whether what a model of this type gives differs by the rounding of many layers, not by another input.

    A neighbour or padding has a larger influence. Hollow matrices may give rounding alone.
    """
    tolerance = torch.finfo(dtype).eps ** (1 / 3) * max(1.0, float(expected.norm()))
    return bool((found - expected).norm() <= tolerance)


def head_device(head: Head) -> torch.device:
    """Return the device of a head's parameters."""
    return next(head.module.parameters()).device


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a causal model that run one after another and hold most of its weights."""
    inner = inner_model(model)
    names = set(getattr(inner, "_no_split_modules", None) or ())
    return [module for module in inner.modules() if type(module).__name__ in names]


def own_embedding(model: nn.Module) -> list[nn.Module]:
    """Return the embedding in a list, nothing where the head has the same weight."""
    inner = inner_model(model)
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    is_tied = head is None or {*embedding.parameters()} & {*head.parameters()}
    return [] if is_tied else [embedding]


def let_inputs_need_gradients(model: nn.Module) -> None:
    """Let the first layer's input need a gradient although nothing before it is trained, so that its hooks see one."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_() if torch.is_grad_enabled() else output

    inner_model(model).get_input_embeddings().register_forward_hook(hook)
