"""Token ids in, text out: batched generation, and one answer at a time while it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from swiftlet import log
from swiftlet.errors import DataError
from swiftlet.inference.stopping import Decode
from swiftlet.inference.streaming import Pieces
from swiftlet.models.generation_file import end_ids
from swiftlet.models.padding import ignores_padding
from swiftlet.models.rope import follows_length


@dataclass(frozen=True)
class Settings:
    """How an answer is chosen; temperature 0 is the same as do_sample false."""

    max_new_tokens: int = 2048
    do_sample: bool = True
    temperature: float = 0.3
    top_k: int = 20
    top_p: float = 0.7
    repetition_penalty: float = 1.0
    stop_words: tuple[str, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return not self.do_sample or self.temperature == 0

    def to_json(self) -> dict[str, Any]:
        """Return the settings by the names that transformers has for them."""
        fields: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": not self.is_greedy,
            "repetition_penalty": self.repetition_penalty,
        }
        if not self.is_greedy:
            fields |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return fields


class Generator:
    """A model with its way from ids to text, its end tokens and the settings of generation.

    Args:
        model: a causal language model of transformers, with or without adapters.
        decode: token ids to text, control tokens left out.
        pad_id: what fills the left of shorter prompts; the first end token when None.
        stop_token_ids: ids that end an answer, beside those that the model itself names; they are cut from its text.
        context_length: most tokens of prompt and answer together, None for no limit.
    """

    def __init__(
        self,
        *,
        model: Any,
        decode: Decode,
        stop_token_ids: Sequence[int],
        settings: Settings,
        pad_id: int | None = None,
        context_length: int | None = None,
    ) -> None:
        self.model = model
        self.decode = decode
        own = end_ids(model.generation_config.eos_token_id)
        self.stop_token_ids = list(dict.fromkeys([*stop_token_ids, *own]))
        self.pad_id = pad_id if pad_id is not None else (self.stop_token_ids or [0])[0]
        self.settings = settings
        self.context_length = context_length
        self._pads: bool | None = None

    def room(self, length: int) -> int:
        """Return how many tokens the answer to a prompt of this length may get.

        Raises:
            DataError: it leaves none.
        """
        room = self.settings.max_new_tokens
        if self.context_length is not None:
            room = min(room, self.context_length - length)
        if room < 1:
            raise DataError(
                f"a prompt of {length} tokens leaves no room in a context of {self.context_length}",
                "shorten it, type clear in a chat, or use a model with a longer context",
            )
        return room

    def options(self, room: int) -> dict[str, Any]:
        """Return what a pass of at most `room` tokens is called with."""
        return self.settings.to_json() | {
            "max_new_tokens": room,
            "eos_token_id": self.stop_token_ids or None,
            "pad_token_id": self.pad_id,
            "num_beams": 1,
            "use_cache": True,
        }

    def until_stop(self, ids_N: list[int]) -> list[int]:
        """Return the tokens before the first that ends an answer."""
        stops = set(self.stop_token_ids)
        for at, token in enumerate(ids_N):
            if token in stops:
                return ids_N[:at]
        return ids_N

    def text(self, ids_N: Sequence[int]) -> str:
        """Return the text of an answer, cut at the first stop word."""
        text = self.decode(list(ids_N))
        ends = [at for word in self.settings.stop_words if (at := text.find(word)) >= 0]
        return text[: min(ends)] if ends else text

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return one answer a prompt, in their order.

        Raises:
            DataError: a prompt leaves no room in the context.
        """
        texts = dict(self.answers_as_they_end(prompts))
        return [texts[at] for at in range(len(prompts))]

    def answers_as_they_end(
        self, prompts: Sequence[Sequence[int]], most_tokens: int | None = None
    ) -> Iterator[tuple[int, str]]:
        """Yield (index of the prompt, its answer), longest prompts first.

        Args:
            most_tokens: of a batch with its padding; None answers all prompts at once.

        Raises:
            DataError: a prompt leaves no room in the context.
        """
        for at, ids in self._ids(prompts, most_tokens):
            yield at, self.text(ids)

    def answer(self, prompt: Sequence[int], on_text: Callable[[str], None]) -> str:
        """Return the answer to one prompt; `on_text` gets each piece as soon as its characters are whole."""
        pieces = Pieces(
            lambda ids: self.text(self.until_stop(list(ids))), self.decode, self.settings.stop_words, on_text
        )
        [(_, ids)] = self._ids([prompt], streamer=pieces)
        text = self.text(ids)
        pieces.finish(text)
        return text

    @torch.inference_mode()
    def _ids(
        self, prompts: Sequence[Sequence[int]], most_tokens: int | None = None, streamer: Any = None
    ) -> Iterator[tuple[int, list[int]]]:
        from swiftlet.inference.running import Running

        may_mix = len(prompts) > 1 and self._can_pad()
        for group in [list(range(len(prompts)))] if may_mix else _of_one_length(prompts):
            rows = {at: prompts[at] for at in group}
            yield from Running(self, rows, most_tokens, joins=may_mix, streamer=streamer).answers()

    def _can_pad(self) -> bool:
        if self._pads is None:
            self._pads = not follows_length(self.model) and ignores_padding(self.model, self.pad_id)
            if not self._pads:
                log.info(
                    "this model answers otherwise beside padding: only prompts of one length go together (slower)"
                )
        return self._pads


def _of_one_length(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the indices of prompts by their length, the longest first."""
    lengths = sorted({len(prompt) for prompt in prompts}, reverse=True)
    return [[at for at, prompt in enumerate(prompts) if len(prompt) == length] for length in lengths]
