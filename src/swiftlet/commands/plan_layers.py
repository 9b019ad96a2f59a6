"""What the layers of an architecture keep for the backward pass, seen in a step of its own on fake tensors.

For architectures whose build the formula does not know ("near"): dropout that attention draws by its definition,
states of recurrent layers, experts that every token takes. The model that config.json describes is built without
weights, with as few layers as show each kind, and what each of them leaves alive and makes is compared with the
formula's. Plain attention keeps what the formula has for it, as on every device; what else layers compute is seen
with the operators of a processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from dataclasses import replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swiftlet import log
from swiftlet.commands.model_setup import lora_settings
from swiftlet.commands.plan_trace import (
    NotSeen,
    build_empty,
    config_in,
    give_fake_tensors,
    kinds_of,
    num_shown,
    quiet,
    with_layers,
)
from swiftlet.config.places import cache_folder
from swiftlet.device.kernels import AttentionRules, PackedAttention, plain_attention
from swiftlet.device.spec import DTYPES
from swiftlet.errors import first_line
from swiftlet.files import code_hash, write_whole
from swiftlet.models.attention_cpu import flash_attention
from swiftlet.models.causal import build_causal
from swiftlet.models.head import decoder_layers, inner_model
from swiftlet.models.safety import CONFIG
from swiftlet.plan.activations import layer_backward, saved_per_layer
from swiftlet.plan.cards import Card
from swiftlet.plan.live import LiveBytes
from swiftlet.plan.setting import NONE, Setting

KEPT = "layers"  # a folder of the cache: what was seen, a file each
PACKAGE = Path(__file__).parents[1]
LENGTHS = (256, 512)  # of one sample [tokens]: what grows with its square shows between them
LONGEST = 4096  # that is looked at, where attention runs by its definition
# What code raises that does not run on fake tensors; the latter only where it is not ours, which would be a mistake.
NOT_SEEN = (NotSeen, RuntimeError, ValueError)
NOT_SEEN_BY_OTHERS = (TypeError, LookupError, AttributeError, AssertionError)


class Layers(NamedTuple):
    """What the architecture says of its layers beside the formula, by the names of `Setting`.

    Args:
        more_a_token, more_a_pair: bytes that the mean layer keeps.
        more_backward, more_backward_a_pair: bytes that the backward pass of the largest makes.
        more_again, more_again_a_pair: bytes of the layer that takes most of both, above that mean and that largest.
        num_adapted: parameters of all adapters.
        num_idle: first layers with nothing trained before or in them.
        is_alone: each sample has a pass of its own.
    """

    more_a_token: float
    more_a_pair: float
    more_backward: float
    more_backward_a_pair: float
    more_again: float
    more_again_a_pair: float
    num_adapted: int
    num_idle: int
    is_alone: bool


class Watch:
    """Hooks that write down what is alive between layers, forward, and the peaks between them, backward.

    What comes into the first layer gets a gradient, so that layers before the first adapter keep what those behind do.
    """

    def __init__(self, layers: list[nn.Module], live: LiveBytes) -> None:
        self.live = live
        self.alive: list[int] = []
        self.peaks: list[int] = []
        self._start = 0
        for layer in layers:
            layer.register_forward_pre_hook(self._before, with_kwargs=True)
        layers[-1].register_forward_hook(lambda _, __, output: self._pass(output))

    def _before(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        if not args and "hidden_states" not in kwargs:
            raise NotSeen("its layers take no hidden_states")
        self._pass(args or kwargs["hidden_states"])

    def _pass(self, states: Any) -> None:
        states_TH = states if isinstance(states, Tensor) else states[0]
        if not self.alive and not states_TH.requires_grad:
            states_TH.requires_grad_()
        self.alive.append(self.live.live)
        states_TH.register_hook(self._turn)

    def _turn(self, _: Tensor) -> None:
        self.peaks.append(self.live.peak - self._start)
        self.live.reset_peak()
        self._start = self.live.live

    def read(self) -> tuple[list[int], list[int]]:
        """Return what each layer left alive, and the peak of its backward pass above that; begin anew."""
        kept = [after - before for before, after in pairwise(self.alive)]
        peaks = self.peaks[:0:-1]  # the first one is that of the head
        self.alive, self.peaks = [], []
        return kept, peaks


def with_layers_of(subject: Any, setting: Setting) -> Setting:
    """Return the setting of a run with what the layers of its model keep; as it was where they cannot be looked at.

    What was seen is kept for later starts: a look takes seconds.
    """
    path = cache_folder(os.environ) / KEPT / f"{_key(subject)}.json"
    found = _read(path)
    if found is None:
        try:
            found = look(subject, setting)
        except (*NOT_SEEN, *NOT_SEEN_BY_OTHERS) as error:
            if not isinstance(error, NOT_SEEN) and _is_of_our_code(error):
                raise
            if log.rank() == 0:
                log.warning(
                    f"what the layers of {subject.sized.name} keep is not seen without weights "
                    f"({type(error).__name__}: {first_line(error)}): planned by sizes alone, it may need more"
                )
            return setting
        _write(path, found)
    return replace(setting, **found._asdict())


def _is_of_our_code(error: Exception) -> bool:
    """Return whether the line that raised an error is in this package, not in the code of a model or a library."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(PACKAGE)


def _key(subject: Any) -> str:
    """Return a hash of all that a look follows from: the model, the flags, our own code and the libraries."""
    args = subject.args
    parts = [(subject.sized.folder / CONFIG).read_text(encoding="utf-8"), subject.dtype, repr(args.tuner)]
    parts += [args.model.fused_operators, repr(subject.card.keeps_inputs), repr(_longer(subject.longest))]
    parts += [metadata.version(library) for library in ("torch", "transformers", "peft")]
    parts.append(code_hash(PACKAGE))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> Layers | None:
    """Return what was seen earlier; a file that cannot be read costs a look, not the run."""
    try:
        found = Layers(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if all(isinstance(value, int | float) for value in found) else None


def _write(path: Path, found: Layers) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(found._asdict()))
    except OSError as error:
        log.warning(f"{path} cannot be written: {error.strerror}; layers are looked at anew each time")


def look(subject: Any, setting: Setting) -> Layers:
    """Return what layers keep and make beside what the formula has, and how many numbers adapters have.

    Args:
        subject: of `commands.planning`, with a folder.
        setting: of the run.
    """
    args, dtype, geometry = subject.args, DTYPES[subject.dtype], subject.sized.geometry
    kinds = kinds_of(subject.sized.folder)
    config = with_layers(config_in(subject.sized.folder), num_shown(kinds)[0])
    lora = None if setting.is_full else lora_settings(args.tuner)
    # What a full run freezes is told by `setting`: a share of few layers would be another part.
    tuner_args = replace(args.tuner, freeze_parameters=(), freeze_parameters_ratio=0.0)
    model = build_empty(config, tuner_args, dtype, lora)
    adapted = _num_adapted(model, kinds)
    idle = setting.num_idle if setting.is_full else _num_idle(model, kinds)
    host = replace(setting, is_host=True, keeps_inputs=False, keeps_attention=True, longest=0, engine="none")
    is_alone, watched = _watched(model, args, subject)
    kept, made, again = {}, {}, {}
    for tokens, (layers, peaks) in watched.items():
        by_kind = dict(zip(kinds, layers, strict=False))
        mean, highest = fmean(by_kind[kind] for kind in kinds[idle:]), max(peaks)
        plain = replace(host, tokens=tokens, recompute=NONE)
        kept[tokens] = mean - saved_per_layer(geometry, plain)
        made[tokens] = highest - layer_backward(geometry, plain)
        again[tokens] = max(map(sum, zip(layers, peaks, strict=True))) - mean - highest
    found = (*_by_tokens(kept), *_by_tokens(made, is_peak=True), *_by_tokens(again))
    return Layers(*found, adapted, idle, is_alone)


def _longer(longest: int) -> tuple[int, ...]:
    """Return the lengths beyond LENGTHS to look at where attention runs by its definition, up to that of a run.

    There its backward pass overtakes that of the MLP, and layers with a window no longer keep the square of a sample.
    """
    upper = min(LONGEST, 1 << (longest - 1).bit_length())
    return tuple(length for length in (upper // 2, upper) if length > LENGTHS[-1])


def _attention_of(card: Card, by_definition: list[AttentionRules]) -> PackedAttention:
    """Return what the operator of a device does, or where it cannot, attention by its definition, noted in a list."""
    draws = card.keeps_inputs  # an NPU's draws the mask of dropout itself, and again in the backward pass

    def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: list[int], rules: AttentionRules) -> Tensor:
        if rules.is_plain and (draws or rules.dropout_p == 0) and v.shape[-1] == q.shape[-1]:
            return flash_attention(q, k, v, cu_seqlens, rules.scale)
        if not rules.is_plain:
            by_definition.append(rules)
        return plain_attention(q, k, v, cu_seqlens, rules)

    return attention


def _by_tokens(found: dict[int, float], *, is_peak: bool = False) -> tuple[float, float]:
    """Return the bytes a token, and a pair of tokens (none below 0), that give these values for the longest samples.

    Args:
        found: the bytes for a sample of each length.
        is_peak: give no shorter one less than it takes either, but for the first: its peak may lie elsewhere.
    """
    few, many = list(found)[-2:]
    pair = max(0.0, (found[many] / many - found[few] / few) / (many - few))
    lengths = list(found)[1:] if is_peak else [many]
    return max(found[length] / length - pair * length for length in lengths), pair


def _num_idle(model: nn.Module, kinds: list[Any]) -> int:
    """Return how many first layers of all have nothing that is trained in them or before them."""
    if _is_trained(inner_model(model).get_input_embeddings()):
        return 0
    trained = {kind for kind, layer in zip(kinds, decoder_layers(model), strict=False) if _is_trained(layer)}
    return next((at for at, kind in enumerate(kinds) if kind in trained), 0)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _num_adapted(model: nn.Module, kinds: list[Any]) -> int:
    """Return the parameters of adapters in a model of all these layers, from one with its first ones."""
    layers = decoder_layers(model)
    inside = dict(zip(kinds, map(_count, layers), strict=False))
    return _count(model) - sum(map(_count, layers)) + sum(inside[kind] for kind in kinds)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for name, parameter in module.named_parameters() if "lora_" in name)


def _watched(
    model: nn.Module, args: Any, subject: Any
) -> tuple[bool, dict[int, tuple[list[int], list[int]]]]:
    """Return whether samples go alone, and what a `Watch` reads of a pass over one sample of each length."""
    by_definition: list[AttentionRules] = []
    attention = _attention_of(subject.card, by_definition)
    live = LiveBytes(num_labels=1)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    found = {}
    with quiet():
        give_fake_tensors(model, mode)
        with mode, live:
            is_fused = args.model.fused_operators != "false"
            causal = build_causal(model, use_fused=is_fused, kernels={"attention": attention}).train()
            watch = Watch(decoder_layers(model), live)
            for tokens in (*LENGTHS, *_longer(subject.longest)):
                if tokens > LENGTHS[-1] and not by_definition:
                    break
                ids_T = torch.zeros(tokens, dtype=torch.long)
                causal(ids_T, ids_T, [0, tokens], ids_T).loss_sum.backward()
                found[tokens] = watch.read()
    return not causal.is_packed, found
