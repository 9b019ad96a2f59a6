"""Token ids in, text out: batched generation, and one answer at a time while it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from swiftlet import log
from swiftlet.data.thoughts import Thoughts
from swiftlet.errors import DataError
from swiftlet.inference.stopping import Decode, EndsAnswer, SaysWord
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


class Reply(NamedTuple):
    """What a model wrote, and what of it stands behind a thought, None without one."""

    text: str
    answer: str | None

    @property
    def said(self) -> str:
        """What stays in a conversation: templates put what was thought elsewhere, or leave it out of later prompts."""
        return self.text if self.answer is None else self.answer


class Generator:
    """A model with its way from ids to text, its end tokens and the settings of generation.

    Args:
        model: a causal language model of transformers, with or without adapters.
        decode: token ids to text, control tokens left out.
        pad_id: what fills the left of shorter prompts; the first end token when None.
        stop_token_ids: ids that end an answer, beside those that the model itself names; they are cut from its text.
        context_length: most tokens of prompt and answer together, None for no limit.
        thoughts: how the model writes what it thinks before an answer, None where it does not.
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
        thoughts: Thoughts | None = None,
    ) -> None:
        self.model = model
        self.decode = decode
        own = end_ids(model.generation_config.eos_token_id)
        self.stop_token_ids = list(dict.fromkeys([*stop_token_ids, *own]))
        self.pad_id = pad_id if pad_id is not None else (self.stop_token_ids or [0])[0]
        self.settings = settings
        self.context_length = context_length
        self.thoughts = thoughts
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

    def other_ends(
        self, starts: Sequence[int], device: torch.device
    ) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Return what ends the rows of a batch beside end tokens.

        Args:
            starts: where the answer of each row begins.
        """
        words, thoughts = self.settings.stop_words, self.thoughts
        found: list[Callable[[torch.Tensor], torch.Tensor]] = []
        if words:
            found.append(SaysWord(self.decode, words, starts))
        if thoughts is not None and thoughts.markers:
            found.append(EndsAnswer(thoughts, starts, device))
        return found

    def until_end(self, ids_N: list[int]) -> list[int]:
        """Return an answer without what ends it and follows: an end token, or a marker that may end a thought too."""
        ids_N, thoughts = self._until_stop(ids_N), self.thoughts
        if thoughts is None:
            return ids_N
        marked = (at for at, token in enumerate(ids_N) if token in thoughts.markers)
        return ids_N[: next((at for at in marked if thoughts.ends_answer(ids_N[: at + 1])), None)]

    def _until_stop(self, ids_N: list[int]) -> list[int]:
        stops = set(self.stop_token_ids)
        return ids_N[: next((at for at, token in enumerate(ids_N) if token in stops), None)]

    def text(self, ids_N: Sequence[int]) -> str:
        """Return the text of an answer, cut at the first stop word."""
        return self._until_word(self.decode(list(ids_N)))

    def _until_word(self, text: str) -> str:
        ends = [at for word in self.settings.stop_words if (at := text.find(word)) >= 0]
        return text[: min(ends)] if ends else text

    def _reply(self, ids_N: Sequence[int]) -> Reply:
        answer = None if self.thoughts is None else self.thoughts.answer(ids_N)
        return Reply(self.text(ids_N), None if answer is None else self._until_word(answer))

    def replies_as_they_end(
        self, prompts: Sequence[Sequence[int]], most_tokens: int | None = None
    ) -> Iterator[tuple[int, Reply]]:
        """Yield (index of the prompt, what the model wrote), longest prompts first.

        Args:
            most_tokens: of a batch with its padding; None answers all prompts at once.

        Raises:
            DataError: a prompt leaves no room in the context.
        """
        for at, ids in self._ids(prompts, most_tokens):
            yield at, self._reply(ids)

    def answer(self, prompt: Sequence[int], on_text: Callable[[str], None]) -> Reply:
        """Return what the model wrote to one prompt; `on_text` gets each piece as soon as its characters are whole."""
        # the pieces are of the last tokens, which do not tell a marker that ends the answer from one of a thought
        pieces = Pieces(
            lambda ids: self.text(self._until_stop(list(ids))), self.decode, self.settings.stop_words, on_text
        )
        [(_, ids)] = self._ids([prompt], streamer=pieces)
        reply = self._reply(ids)
        pieces.finish(reply.text)
        return reply

    @torch.inference_mode()
    def _ids(
        self, prompts: Sequence[Sequence[int]], most_tokens: int | None = None, streamer: Any = None
    ) -> Iterator[tuple[int, list[int]]]:
        from swiftlet.inference.running import Running

        groups = _of_one_length(prompts)
        may_mix = (len(groups) > 1 or most_tokens is not None) and self._can_pad()
        for group in [range(len(prompts))] if may_mix else groups:
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
