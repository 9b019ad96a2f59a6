"""Proof that a merged model answers as its adapter does, on prompts that the checkpoint keeps as token ids.

Shapes: T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from swiftlet.errors import SwiftletError

# Largest difference of log-probabilities at the prompts' positions that rounding of the merged weights explains,
# by dtype of the merged weights: fp32 rounds at 2^-24, fp16 at 2^-11 and bf16 at 2^-8 of each weight.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.5}


class Proof(NamedTuple):
    """How far two models differ on the same prompts."""

    num_prompts: int
    num_positions: int
    max_difference: float
    mean_difference: float
    token_agreement: float


class MergeError(SwiftletError):
    """Merged weights that do not answer as the adapter does."""


@torch.inference_mode()
def log_probabilities(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the log-probabilities of each prompt, one prompt a forward pass: a list of fp32 TV on the CPU."""
    device = next(model.parameters()).device
    outputs = []
    for prompt in prompts:
        logits_TV = model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=False).logits[0]
        outputs.append(torch.log_softmax(logits_TV.float(), dim=-1).cpu())
    return outputs


def compare(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> Proof:
    """Return how far two lists of log-probabilities differ; tokens of probability below 1e-4 are left out."""
    worst, total, count, positions, agreed = 0.0, 0.0, 0, 0, 0
    for a_TV, b_TV in zip(first, second, strict=True):
        likely = ~(torch.maximum(a_TV, b_TV) < -9.21)  # keeps what is not a number
        difference = (a_TV - b_TV).abs()[likely]
        if not bool(torch.isfinite(difference).all()):
            worst = float("inf")
        worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
        total += float(difference.sum())
        count += difference.numel()
        positions += a_TV.shape[0]
        agreed += int((a_TV.argmax(-1) == b_TV.argmax(-1)).sum())
    return Proof(len(first), positions, worst, total / max(count, 1), agreed / max(positions, 1))


def check(proof: Proof, tolerance: float) -> None:
    """Accept a merged model, or say how far it is off.

    Raises:
        MergeError: the largest difference is above the tolerance, or is not finite.
    """
    if proof.num_positions == 0:
        raise MergeError(
            "there is no prompt to compare the merged model on", "save the checkpoint again with swift sft"
        )
    if not proof.max_difference <= tolerance:
        raise MergeError(
            f"the merged model differs from the adapter by {proof.max_difference:.3g} in log-probability "
            f"(at most {tolerance:g} is accepted), {100 * proof.token_agreement:.1f} % of the next tokens agree",
            "merge with --dtype fp32, or check that this is the base model the adapter was trained on",
        )
