"""Keys and values of the rows that are being answered: rows leave and join, and a new token copies none before it.

Shapes: B rows, H heads of keys, T tokens, D size of a head. All rows end at the right, as prompts padded on their left.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from swiftlet.models.head import inner_model

ROOM = 64  # tokens; so seldom is what is kept copied as it grows
# Chunks of attention begin at a place in the whole row, which moves where a longer row joins.
KINDS = {"full_attention", "sliding_attention"}
# What layers keep: keys and values, those of a window, or none where they read those of a layer before (Gemma 3n, 4).
KEPT = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
NAMES = ("cache", "past_key_values")  # of the argument, in new and older releases of transformers


class _RoomyLayer(DynamicLayer):
    """A layer with room behind its last token; that of transformers copies all keys and values at each token."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms: tuple[Tensor, Tensor] | None = None
        self._written: Tensor | None = None  # the keys as they were left here

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.rooms is None or self.keys is not self._written or self.rooms[0].shape[-2] < end:
            self.rooms = (
                _with_room(self.keys, key_states, start, end),
                _with_room(self.values, value_states, start, end),
            )
        for room_BHTD, states_BHTD in zip(self.rooms, (key_states, value_states), strict=True):
            room_BHTD[:, :, start:end] = states_BHTD
        self.keys, self.values = (room_BHTD[:, :, :end] for room_BHTD in self.rooms)
        self._written = self.keys
        return self.keys, self.values


def _with_room(kept_BHTD: Tensor, states_BHTD: Tensor, start: int, end: int) -> Tensor:
    rows, heads, _, size = states_BHTD.shape
    room_BHTD = states_BHTD.new_empty((rows, heads, end + ROOM, size))
    if start:
        room_BHTD[:, :, :start] = kept_BHTD
    return room_BHTD


def open_cache(model: Any) -> dict[str, Any]:
    """Return an empty cache by the name that the model's passes have for it; nothing where rows could not join it.

    That is where a layer keeps more of a row than keys and values, or the code of the model came with its weights.
    """
    inner = inner_model(model)
    text = inner.config.get_text_config(decoder=True)
    arguments = inspect.signature(inner.forward).parameters
    name = next((name for name in NAMES if name in arguments), None)
    if (
        name is None
        or inner.is_remote_code()
        or not KINDS.issuperset(getattr(text, "layer_types", None) or ())
    ):
        return {}
    cache = DynamicCache(config=text)
    if not KEPT.issuperset(type(layer).__name__ for layer in cache.layers):
        return {}
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return {name: cache}


def leave(cache: DynamicCache, staying: list[int], cut: int) -> None:
    """Keep some rows only, without the first `cut` tokens, which are padding in all that stay."""
    for layer in cache.layers:
        if layer.keys is not None:
            rows = torch.tensor(staying, device=layer.keys.device)
            length = layer.get_seq_length() - cut
            first = max(layer.keys.shape[-2] - length, 0)  # a window has fewer tokens than the row
            _put(layer, layer.keys[rows, :, first:], layer.values[rows, :, first:], length)


def join(cache: DynamicCache, other: DynamicCache) -> None:
    """Put the rows of another cache behind those of this one; the shorter are padded on their left."""
    for layer, new in zip(cache.layers, other.layers, strict=True):
        if new.keys is not None:
            length = max(layer.get_seq_length(), new.get_seq_length())
            _put(layer, _together(layer.keys, new.keys), _together(layer.values, new.values), length)


def _put(layer: Any, keys_BHTD: Tensor, values_BHTD: Tensor, length: int) -> None:
    layer.keys, layer.values = keys_BHTD, values_BHTD
    if isinstance(layer, _RoomyLayer):
        layer.rooms = None  # what was kept there is not held beside its copy
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = length


def _together(*states: Tensor) -> Tensor:
    longest = max(states_BHTD.shape[-2] for states_BHTD in states)
    return torch.cat([pad(states_BHTD, (0, 0, longest - states_BHTD.shape[-2], 0)) for states_BHTD in states])
