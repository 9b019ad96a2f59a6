"""When `generate` ends an answer before its most tokens, beside end tokens: stop words, and markers of two meanings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from swiftlet.data.thoughts import Thoughts

Decode = Callable[[Sequence[int]], str]
UNREADABLE = "\ufffd"  # what bytes that are no whole character are decoded to
LONGEST_CHARACTER = 4  # bytes in UTF-8


class SaysWord:
    """Which rows of a batch have said a stop word. Decodes the last tokens that can hold one."""

    def __init__(self, decode: Decode, words: Sequence[str], prompt_length: int) -> None:
        self.decode = decode
        self.words = words
        self.prompt_length = prompt_length
        self.most_tokens = max(len(word.encode()) for word in words) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return for each row whether it has."""
        read = self.most_tokens + LONGEST_CHARACTER - 1
        answers = input_ids[:, max(self.prompt_length, input_ids.shape[1] - read) :].tolist()
        return torch.tensor([self._is_said(answer) for answer in answers], device=input_ids.device)

    def _is_said(self, answer: list[int]) -> bool:
        """Where the last tokens begin inside a character, a tokenizer of single bytes may read none behind it."""
        for more in range(LONGEST_CHARACTER):
            text = self.decode(answer[-self.most_tokens - more :])
            if any(word in text for word in self.words):
                return True
            if UNREADABLE not in text:
                return False
        return False


class EndsAnswer:
    """Which rows of a batch have ended their answer with a marker that ends thoughts too."""

    def __init__(self, thoughts: Thoughts, prompt_length: int) -> None:
        self.thoughts = thoughts
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return for each row whether it has."""
        answers = input_ids[:, self.prompt_length :]
        is_marked = torch.isin(answers[:, -1], torch.tensor(self.thoughts.markers, device=answers.device))
        for row in is_marked.nonzero().flatten().tolist():
            is_marked[row] = self.thoughts.ends_answer(answers[row].tolist())
        return is_marked
