"""Token ids in, text out: batched generation with left padding, and one answer at a time while it is written.

Shapes: B prompts in a batch, T tokens of the longest prompt, N new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from swiftlet import log
from swiftlet.data.thoughts import Thoughts
from swiftlet.errors import DataError
from swiftlet.inference.stopping import UNREADABLE, Decode, EndsAnswer, SaysWord
from swiftlet.models.generation_file import end_ids
from swiftlet.models.padding import ignores_padding, left_padded
from swiftlet.models.rope import follows_length

WINDOW = 32  # last tokens of a streamed answer that are decoded again, at least


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


class _OnTokens:
    """What `generate` calls with each new token; the first call holds the prompt and is skipped."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self.on_token = on_token
        self.is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self.is_prompt:
            self.is_prompt = False
            return
        for token in value.flatten().tolist():
            self.on_token(token)

    def end(self) -> None:
        self.is_prompt = True


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
        self.pad_id = pad_id
        own = end_ids(model.generation_config.eos_token_id)
        self.stop_token_ids = list(dict.fromkeys([*stop_token_ids, *own]))
        self.settings = settings
        self.context_length = context_length
        self.thoughts = thoughts
        self._pads: bool | None = None

    def _room(self, longest: int, num_made: int = 0) -> int:
        """Return how many tokens every row of a batch may still get; the longest has this many in all."""
        room = self.settings.max_new_tokens - num_made
        if self.context_length is not None:
            room = min(room, self.context_length - longest)
        if room < 1:
            raise DataError(
                f"a prompt of {longest} tokens leaves no room in a context of {self.context_length}",
                "shorten it, type clear in a chat, or use a model with a longer context",
            )
        return room

    def _options(self, room: int) -> dict[str, Any]:
        return self.settings.to_json() | {
            "max_new_tokens": room,
            "eos_token_id": self.stop_token_ids or None,
            "pad_token_id": self._pad_id(),
            "num_beams": 1,
            "use_cache": True,
        }

    def _pad_id(self) -> int:
        if self.pad_id is not None:
            return self.pad_id
        return self.stop_token_ids[0] if self.stop_token_ids else 0

    @torch.inference_mode()
    def _generate(
        self, prompts: Sequence[Sequence[int]], streamer: _OnTokens | None = None
    ) -> list[list[int]]:
        """Return the answers of a batch; where the context of its longest row is full, the others go on without it."""
        answers: list[list[int]] = [[] for _ in prompts]
        going, num_made = list(range(len(prompts))), 0
        while going:
            rows = [[*prompts[at], *answers[at]] for at in going]
            room = self._room(max(len(row) for row in rows), num_made)
            for at, ids in zip(going, self._more(rows, room, num_made, streamer), strict=True):
                answers[at] += ids
            num_made += room
            going = [at for at in going if self._is_cut_short(len(prompts[at]), answers[at], num_made)]
        return answers

    def _more(
        self, rows: Sequence[list[int]], room: int, num_made: int, streamer: _OnTokens | None
    ) -> list[list[int]]:
        """Return at most `room` more tokens of each row, whose last `num_made` are of its answer."""
        from transformers import GenerationConfig

        longest = max(len(row) for row in rows)
        output_BT = self.model.generate(
            **left_padded(rows, self._pad_id(), next(self.model.parameters()).device),
            generation_config=GenerationConfig(**self._options(room)),
            streamer=streamer,
            stopping_criteria=self._stopping(longest - num_made),
        )
        answers = output_BT[:, longest - num_made :].tolist()
        return [self._until_stop(self._until_marker(answer)[num_made:]) for answer in answers]

    def _is_cut_short(self, prompt_length: int, answer: list[int], num_made: int) -> bool:
        """Return whether an answer ended only because a longer row had no more room."""
        if len(answer) < num_made or num_made >= self.settings.max_new_tokens:
            return False
        if self.context_length is None or prompt_length + num_made >= self.context_length:
            return False
        text = self.decode(answer)
        return not any(word in text for word in self.settings.stop_words)

    def _stopping(self, prompt_length: int) -> Any:
        from transformers import StoppingCriteriaList

        words, thoughts = self.settings.stop_words, self.thoughts
        found = StoppingCriteriaList([SaysWord(self.decode, words, prompt_length)] if words else [])
        if thoughts is not None and thoughts.markers:
            found.append(EndsAnswer(thoughts, prompt_length))
        return found

    def _until_marker(self, ids_N: list[int]) -> list[int]:
        """Return an answer up to a marker that ends it, and may end a thought as well."""
        thoughts = self.thoughts
        places = (at for at, token in enumerate(ids_N) if thoughts is not None and token in thoughts.markers)
        end = next((at for at in places if thoughts and thoughts.ends_answer(ids_N[: at + 1])), None)
        return ids_N[:end]

    def _until_stop(self, ids_N: list[int]) -> list[int]:
        stops = set(self.stop_token_ids)
        for at, token in enumerate(ids_N):
            if token in stops:
                return ids_N[:at]
        return ids_N

    def _behind(self, ids_N: Sequence[int]) -> str | None:
        answer = None if self.thoughts is None else self.thoughts.answer(ids_N)
        return None if answer is None else self._until_word(answer)

    def text(self, ids_N: Sequence[int]) -> str:
        """Return the text of an answer, cut at the first stop word."""
        return self._until_word(self.decode(list(ids_N)))

    def _until_word(self, text: str) -> str:
        ends = [at for word in self.settings.stop_words if (at := text.find(word)) >= 0]
        return text[: min(ends)] if ends else text

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return one answer a prompt, in their order.

        Raises:
            DataError: a prompt leaves no room in the context.
        """
        return [text for text, _ in self.replies(prompts)]

    def replies(self, prompts: Sequence[Sequence[int]]) -> list[tuple[str, str | None]]:
        """Return for each prompt what the model wrote, and what of it stands behind a thought, None without one.

        Raises:
            DataError: a prompt leaves no room in the context.
        """
        texts: dict[int, tuple[str, str | None]] = {}
        for batch in self._alike([len(prompt) for prompt in prompts]):
            answers = self._generate([prompts[at] for at in batch])
            texts |= {at: (self.text(ids), self._behind(ids)) for at, ids in zip(batch, answers, strict=True)}
        return [texts[at] for at in range(len(prompts))]

    def _alike(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the indices of rows that may be answered together."""
        if len(set(lengths)) == 1 or self._can_pad():
            return [list(range(len(lengths)))]
        return [
            [at for at, other in enumerate(lengths) if other == length] for length in sorted(set(lengths))
        ]

    def _can_pad(self) -> bool:
        if self._pads is None:
            self._pads = not follows_length(self.model) and ignores_padding(self.model, self._pad_id())
            if not self._pads:
                log.info(
                    "this model answers otherwise beside padding: only prompts of one length go together (slower)"
                )
        return self._pads

    def answer(self, prompt: Sequence[int], on_text: Callable[[str], None]) -> str:
        """Return the answer to one prompt; `on_text` gets each piece as soon as its characters are whole."""
        ids: list[int] = []
        start, shown = 0, 0  # the tokens that are decoded, and how many characters of their text are shown
        total = 0

        def on_token(token: int) -> None:
            nonlocal start, shown, total
            ids.append(token)
            text = self._settled(self.text(self._until_stop(ids[start:])))
            if not text.endswith(UNREADABLE) and len(text) > shown:
                on_text(text[shown:])
                total, shown = total + len(text) - shown, len(text)
            if len(ids) - start >= 2 * WINDOW:
                start, shown = self._later_start(ids, start, shown)

        final = self.text(self._generate([prompt], _OnTokens(on_token))[0])
        if len(final) > total:
            on_text(final[total:])
        return final

    def _later_start(self, ids: Sequence[int], start: int, shown: int) -> tuple[int, int]:
        """Return a later start of what is decoded, where its text is shown and the end of what came before.

        All tokens of an answer, decoded at each of them, would take time by the square of its length.
        """
        text, last = self.decode(ids[start:]), self.decode(ids[-WINDOW:])
        if shown < len(text) or not text.endswith(last) or UNREADABLE in last:
            return start, shown
        return len(ids) - WINDOW, len(last)

    def _settled(self, text: str) -> str:
        """Return a text without an end that may grow into a stop word, which no answer shows."""
        words = self.settings.stop_words
        begun = (at for word in words for at in range(1, len(word)) if text.endswith(word[:at]))
        return text[: len(text) - max(begun, default=0)]


def batches_by_length(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of batches, longest first, whose padded size stays below `most_tokens` (or holds one)."""
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and width * (len(batch) + 1) > most_tokens:
            yield batch
            batch = []
        if not batch:
            width = lengths[index]
        batch.append(index)
    if batch:
        yield batch
