"""When the rows of a running batch have ended: at an end token, a stop word, or a marker of two meanings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from swiftlet.data.thoughts import Thoughts

Decode = Callable[[Sequence[int]], str]
UNREADABLE = "\ufffd"  # what bytes that are no whole character are decoded to
LONGEST_CHARACTER = 4  # bytes in UTF-8


class Ended:
    """What `generate` asks after each token; ends the pass as soon as enough rows have ended.

    Args:
        ends: the ids [E] that end an answer.
        others: what else ends one; each tells of [B, T] ids which rows [B] have ended with the last.
        enough: how many rows end the pass.
    """

    def __init__(self, ends: Tensor, others: Sequence[Callable[[Tensor], Tensor]], enough: int) -> None:
        self.ends = ends
        self.others = others
        self.enough = enough
        self.rows: Tensor | None = None  # [B], which have ended

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended_B = torch.isin(input_ids[:, -1], self.ends)
        for other in self.others:
            ended_B = ended_B | other(input_ids)
        self.rows = ended_B if self.rows is None else self.rows | ended_B
        return self.rows | (self.rows.sum() >= self.enough)


class SaysWord:
    """Which rows of a batch have said a stop word. Decodes the last tokens that can hold one.

    Args:
        starts: where the answer of each row begins, padding and prompt before it.
    """

    def __init__(self, decode: Decode, words: Sequence[str], starts: Sequence[int]) -> None:
        self.decode = decode
        self.words = words
        self.starts = starts
        self.most_tokens = max(len(word.encode()) for word in words) + 1

    def __call__(self, input_ids: Tensor) -> Tensor:
        read = self.most_tokens + LONGEST_CHARACTER - 1
        first = max(input_ids.shape[1] - read, 0)
        rows = zip(input_ids[:, first:].tolist(), self.starts, strict=True)
        said = [self._is_said(ids[max(start - first, 0) :]) for ids, start in rows]
        return torch.tensor(said, device=input_ids.device)

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
    """Which rows of a batch have ended their answer with a marker that ends thoughts too.

    Args:
        starts: where the answer of each row begins, padding and prompt before it.
    """

    def __init__(self, thoughts: Thoughts, starts: Sequence[int], device: torch.device) -> None:
        self.thoughts = thoughts
        self.starts = starts
        self.markers = torch.tensor(thoughts.markers, device=device)

    def __call__(self, input_ids: Tensor) -> Tensor:
        is_marked = torch.isin(input_ids[:, -1], self.markers)
        for row in is_marked.nonzero().flatten().tolist():
            is_marked[row] = self.thoughts.ends_answer(input_ids[row, self.starts[row] :].tolist())
        return is_marked
