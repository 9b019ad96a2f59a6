"""One answer as it is written: each piece of its text is shown as soon as its characters are whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from swiftlet.inference.stopping import UNREADABLE, Decode

WINDOW = 32  # last tokens of a streamed answer that are decoded again, at least


class Pieces:
    """What `generate` calls with each new token; the first call holds the prompt and is skipped.

    Args:
        text: tokens to the text that is shown of them.
        decode: tokens to all of their text.
        words: stop words, no part of which is shown.
        on_text: gets each piece.
    """

    def __init__(
        self, text: Decode, decode: Decode, words: Sequence[str], on_text: Callable[[str], None]
    ) -> None:
        self.text = text
        self.decode = decode
        self.words = words
        self.on_text = on_text
        self.ids: list[int] = []
        self.is_prompt = True
        self.start = 0  # the first token that is decoded
        self.shown = 0  # characters of that text which are shown
        self.total = 0  # characters that are shown in all

    def put(self, value: Tensor) -> None:
        if self.is_prompt:
            self.is_prompt = False
            return
        for token in value.flatten().tolist():
            self._add(token)

    def end(self) -> None:
        self.is_prompt = True

    def finish(self, answer: str) -> None:
        """Show what is missing of the whole answer."""
        if len(answer) > self.total:
            self.on_text(answer[self.total :])

    def _add(self, token: int) -> None:
        self.ids.append(token)
        text = self._settled(self.text(self.ids[self.start :]))
        if not text.endswith(UNREADABLE) and len(text) > self.shown:
            self.on_text(text[self.shown :])
            self.total += len(text) - self.shown
            self.shown = len(text)
        if len(self.ids) - self.start >= 2 * WINDOW:
            self._start_later()

    def _start_later(self) -> None:
        """Decode less from here on: all tokens at each of them would take time by the square of the length."""
        text, last = self.decode(self.ids[self.start :]), self.decode(self.ids[-WINDOW:])
        if self.shown == len(text) and text.endswith(last) and UNREADABLE not in last:
            self.start, self.shown = len(self.ids) - WINDOW, len(last)

    def _settled(self, text: str) -> str:
        """Return a text without an end that may grow into a stop word, which no answer shows."""
        begun = (at for word in self.words for at in range(1, len(word)) if text.endswith(word[:at]))
        return text[: len(text) - max(begun, default=0)]
