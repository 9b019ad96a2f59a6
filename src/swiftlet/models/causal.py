"""A causal language model over padding-free micro-batches: what training and evaluation see of a model.

The samples of a micro-batch lie one after another; each attends to itself alone, and the head sees only the positions
whose next token is trained on. Nothing here waits for the device: the boundaries of the samples are a Python list.

Shapes: T tokens of a micro-batch, N labelled positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swiftlet.device.kernels import PackedAttention, RowDropout
from swiftlet.device.transfer import send
from swiftlet.errors import UsageError
from swiftlet.models.adapter_copies import AdapterCopies
from swiftlet.models.attention import no_mask
from swiftlet.models.cross_entropy import Head, linear_cross_entropy
from swiftlet.models.decoder import Backbone
from swiftlet.models.fused import Kernels, apply_fused, kernel, lora_parts
from swiftlet.models.graphs import Graphs
from swiftlet.models.head import backbone, decoder_layers, find_head, head_device, inner_model, is_its_head
from swiftlet.models.hollow import tried_hollow
from swiftlet.models.lora_layers import apply_fast_lora, lora_layers
from swiftlet.models.lora_linear import Parts
from swiftlet.models.neftune import apply_neftune
from swiftlet.models.packing import let_pack
from swiftlet.models.recompute import Recompute
from swiftlet.models.rounding import Tokens, rounded, rounded_rows, row_multiple
from swiftlet.models.row_keys import RowKeys
from swiftlet.models.sharing import TOKEN_COST, TOKEN_COST_RECOMPUTED, PackedInputs, Sharing, Spread, rows_of

IGNORE_INDEX = -100  # data/rows.py names the same number; the rooms are siblings
Log = Callable[[str], object]


class TokenLosses(NamedTuple):
    """Sums over the trained tokens of a micro-batch, as scalars on the device; `loss_sum` (fp32) has a gradient."""

    loss_sum: Tensor
    num_correct: Tensor
    num_tokens: Tensor | int


class CausalLM(nn.Module):
    """A causal model of transformers, with or without adapters around it.

    Args:
        model: the module whose named parameters are trained and saved.
        is_packed: all samples in one pass; else one pass a sample, for models that cannot tell samples apart.
        attention: the packed attention of the device; None for `segment_attention`.
        again: what the backward pass makes again.
        shares_prefixes: compute equal beginnings of samples once, where a micro-batch says which they are;
            `num_spared` of the `num_tokens` of training had no row of their own.
        is_recomputed: the backward pass computes layers again.
        row_multiple: see rounding.py.
        keys, copies: the masks and the adapters' copies of a pass, which the LoRA layers read.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head | None,
        *,
        is_packed: bool,
        attention: PackedAttention | None,
        again: Recompute,
        keys: RowKeys,
        copies: AdapterCopies,
        shares_prefixes: bool,
        is_recomputed: bool,
        row_multiple: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.is_packed = is_packed
        self.attention = attention
        self.again, self.keys, self.copies = again, keys, copies
        self.shares_prefixes = shares_prefixes and is_packed
        self.is_recomputed = is_recomputed
        self.row_multiple = row_multiple
        self.graphs: Graphs | None = None
        self.lengths: list[int] = []
        self.num_tokens = self.num_spared = 0

    def forward(
        self,
        input_ids_T: Tensor,
        position_ids_T: Tensor,
        cu_seqlens: list[int],
        targets_T: Tensor,
        prefixes: Spread | None = None,
        mask_seed: int | None = None,
    ) -> TokenLosses:
        """Return the losses of the positions that have a target: the next token of their sample, not IGNORE_INDEX.

        Targets on the CPU spare the device a wait: how many positions there are is then known without asking it.

        Args:
            prefixes: which tokens are computed once, see data/prefixes.py; none of them predicts a trained one.
            mask_seed: of the step: masks follow from it and from the tokens, however the step is cut, where the device
                can draw by rows.
        """
        self.num_tokens += len(targets_T) if self.training else 0
        prefixes = prefixes if self.shares_prefixes else None
        tokens = Tokens(input_ids_T, position_ids_T, cu_seqlens, targets_T, prefixes)
        tokens = rounded(tokens, self.row_multiple, IGNORE_INDEX)
        input_ids_T, position_ids_T, cu_seqlens, targets_T, prefixes = tokens
        positions_N = (targets_T != IGNORE_INDEX).nonzero().squeeze(1)
        if self.graphs is not None and self.training and prefixes is None and mask_seed is not None:
            losses = self.graphs.losses(tokens, len(positions_N), mask_seed)
            if losses is not None:
                return TokenLosses(*losses, len(positions_N))
        targets_N = send(targets_T[positions_N], input_ids_T.device)
        positions_N = send(positions_N, input_ids_T.device)
        samples = PackedInputs(input_ids_T, position_ids_T, cu_seqlens, self.attention)
        first_U = None
        if prefixes is not None:
            self.num_spared += len(prefixes.source_T) - len(prefixes.first_U) if self.training else 0
            sharing = Sharing.of(prefixes, input_ids_T.device)
            samples = rows_of(samples, sharing, is_held=not self.is_recomputed)
            positions_N = sharing.source_T.index_select(0, positions_N)
            first_U = sharing.first_U
        wanted_W, places_N = rounded_rows(positions_N, len(samples.input_ids_T), self.row_multiple)
        mask_seed = mask_seed if self.is_packed else None
        self.keys.begin(input_ids_T, position_ids_T, mask_seed, first_U, wanted_W)
        self.copies.begin()
        if self.head is None:
            return self._own_logits(samples, positions_N, targets_N)
        hidden_NH = self.wanted_states(samples, wanted_W)
        hidden_NH = hidden_NH if places_N is None else hidden_NH.index_select(0, places_N)
        loss_sum, num_correct = linear_cross_entropy(hidden_NH, targets_N, self.head)
        return TokenLosses(loss_sum, num_correct, targets_N.shape[0])

    @property
    def token_cost(self) -> float | None:
        """Return the memory of a token beside that of a row, None where each token has a row of its own."""
        if not self.shares_prefixes:
            return None
        return TOKEN_COST_RECOMPUTED if self.is_recomputed else TOKEN_COST

    def wanted_states(self, samples: PackedInputs, positions_N: Tensor) -> Tensor:
        """Return the hidden states [N, H] that predict a trained token; our own decoder ends the others early."""
        module = backbone(self.model)
        if not isinstance(module, Backbone) or not len(positions_N):
            return self.hidden_states(samples)[positions_N]
        outputs = self._run(module, samples, wanted_N=positions_N)
        return outputs[0].last_hidden_state[0]

    def hidden_states(self, samples: PackedInputs) -> Tensor:
        """Return the hidden states [T, H] that the head reads."""
        outputs = self._run(backbone(self.model), samples)
        hidden = [output.last_hidden_state[0] for output in outputs]
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden)

    def _own_logits(self, samples: PackedInputs, positions_N: Tensor, targets_N: Tensor) -> TokenLosses:
        outputs = self._run(inner_model(self.model), samples)
        logits_NV = torch.cat([output.logits[0] for output in outputs])[positions_N].float()
        correct = (logits_NV.detach().argmax(1) == targets_N).sum()
        loss_sum = nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")
        return TokenLosses(loss_sum, correct, targets_N.shape[0])

    def _run(self, module: Any, samples: PackedInputs, **options: Any) -> list[Any]:
        """Run a module of transformers over the samples; return its outputs, one or one a sample."""
        input_ids_T, position_ids_T, cu_seqlens, attention = samples
        self.lengths = [end - start for start, end in pairwise(cu_seqlens)]
        with self.again:
            if self.is_packed:
                return [
                    module(
                        input_ids=input_ids_T[None],
                        position_ids=position_ids_T[None],
                        attention_mask=no_mask(input_ids_T.device),
                        use_cache=False,
                        cu_seqlens=cu_seqlens,
                        packed=attention,
                        **options,
                    )
                ]
            parts = zip(input_ids_T.split(self.lengths), position_ids_T.split(self.lengths), strict=True)
            outputs = []
            for ids, positions in list(parts):
                self.lengths = [len(ids)]
                outputs.append(module(input_ids=ids[None], position_ids=positions[None], use_cache=False))
            return outputs


def build_causal(
    model: nn.Module,
    *,
    use_fused: bool = True,
    gradient_checkpointing: bool = False,
    neftune_alpha: float | None = None,
    share_prefixes: bool = True,
    kernels: Kernels | None = None,
    log: Log = lambda message: None,
) -> CausalLM:
    """Make a loaded model ready to train on padding-free micro-batches; changes `model` in place.

    Args:
        model: a causal model of transformers, or a PeftModel around one.
        use_fused: compute LoRA with less memory and fewer passes. Not with weights that a module's own hooks gather.
        share_prefixes: compute equal beginnings of samples once; never with NEFTune, whose noise differs by sample.
        kernels: the operators of the device, see device/kernels.py; its plain ones are replaced by ours.
        log: gets one line for each choice that changes speed.

    Raises:
        UsageError: the model cannot recompute its layers.
    """
    inner = inner_model(model)
    is_packed, again, parts = let_pack(model), Recompute(), lora_parts(kernels)
    keys, copies = RowKeys(of_device=isinstance(parts.dropout, RowDropout)), AdapterCopies()
    if not is_packed:
        log(f"{type(inner).__name__} cannot tell packed samples apart: one forward pass a sample (slower)")
    if use_fused:
        if hasattr(model, "peft_config"):
            _apply_lora(model, parts._replace(keys=keys, copies=copies), log)
        apply_fused(inner, kernels, again)
    head = find_head(model)
    with tried_hollow(model):
        if head is not None and head_device(head).type != "meta" and not is_its_head(model, head):
            head = None
    if head is None:
        log(
            f"{type(inner).__name__} computes logits in its own way: they are not computed in chunks (more memory)"
        )
    causal = CausalLM(
        model,
        head,
        is_packed=is_packed,
        attention=kernel(kernels, "attention", None),
        again=again,
        shares_prefixes=share_prefixes and not neftune_alpha,
        is_recomputed=gradient_checkpointing,
        keys=keys,
        copies=copies,
        row_multiple=row_multiple(model) if is_packed and head is not None else 1,
    )
    if gradient_checkpointing:
        apply_checkpointing(inner)
    if neftune_alpha:
        apply_neftune(inner.get_input_embeddings(), neftune_alpha, lambda: causal.lengths)
    return causal


def _apply_lora(model: nn.Module, parts: Parts, log: Log) -> None:
    num_fast, num_layers = apply_fast_lora(model, parts), lora_layers(model)
    if num_fast < num_layers:
        log(
            f"{num_layers - num_fast} of {num_layers} LoRA layers keep peft's own forward (DoRA, quantised, biased)"
        )


def apply_partial_checkpointing(causal: CausalLM, log: Log = lambda message: None) -> None:
    """Let the backward pass make again what is dear to hold and cheap to compute, see `recompute.py`.

    Raises:
        UsageError: no module of the model is known well enough.
    """
    name, again = type(inner_model(causal.model)).__name__, causal.again
    if not again.num_norms and not again.num_ups:
        raise UsageError(
            f"--gradient_checkpointing partial knows no part of {name} that it can compute again",
            "use --gradient_checkpointing true, and no --fused_operators false",
        )
    num_layers = len(decoder_layers(causal.model))
    if again.num_ups < num_layers:
        log(
            f"gradient_checkpointing partial: {again.num_ups} of {num_layers} layers of {name} have a gated MLP of a "
            "known build; the others spare only normalised values"
        )
    again.is_on = True


def apply_checkpointing(inner: Any) -> None:
    """Let each decoder layer recompute its activations in the backward pass, with the same random numbers.

    Raises:
        UsageError: the model has no support for it.
    """
    if not getattr(inner, "supports_gradient_checkpointing", False):
        raise UsageError(
            f"{type(inner).__name__} cannot recompute activations", "leave out --gradient_checkpointing"
        )
    # transformers 5.23 renamed the method; the old name warns there.
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False, "preserve_rng_state": True})
