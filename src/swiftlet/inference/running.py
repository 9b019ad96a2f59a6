"""A batch whose rows come and go: a row that has ended leaves at once and another takes its place.

A batch that waits for its longest answer spends most of its passes on rows that have ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from swiftlet.inference.cache import join, leave, open_cache
from swiftlet.inference.stopping import Ended
from swiftlet.models.padding import left_padded

if TYPE_CHECKING:
    from swiftlet.inference.generate import Generator

# Rows that end a pass: to let fewer go at once spends time on leaving and joining, more waits for them.
SHARE_OF_ENDED = 4
EXPECTED = 256  # tokens of an answer, for the size of a batch


@dataclass(eq=False)
class _Row:
    index: int
    prompt: Sequence[int]
    room: int  # most tokens of its answer
    answer: list[int] = field(default_factory=list)  # with its end token and what is put behind it
    has_ended: bool = False

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.answer]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def left(self) -> int:
        """Tokens that the answer may still get."""
        return 0 if self.has_ended else self.room - len(self.answer)

    @property
    def size(self) -> int:
        return len(self.prompt) + max(min(self.room, EXPECTED), len(self.answer))


class Running:
    """The rows that wait and those that are being answered.

    Args:
        generator: the model, its settings and its end tokens.
        prompts: by their indices; the longest are answered first.
        most_tokens: of a batch with its padding; None for all rows at once.
        joins: whether rows may join others that run; else a batch begins when the one before has ended.
        streamer: is told each token of a single row.

    Raises:
        DataError: a prompt leaves no room in the context.
    """

    def __init__(
        self,
        generator: Generator,
        prompts: dict[int, Sequence[int]],
        most_tokens: int | None,
        *,
        joins: bool,
        streamer: Any = None,
    ) -> None:
        self.generator = generator
        rows = [_Row(at, prompt, generator.room(len(prompt))) for at, prompt in prompts.items()]
        self.waiting = deque(sorted(rows, key=lambda row: (-len(row.prompt), row.index)))
        self.most_tokens = most_tokens
        self.joins = joins
        self.streamer = streamer
        self.going: list[_Row] = []
        # Empty for a model whose rows cannot leave: each pass reads all again.
        self.cache: dict[str, Any] = {}

    def answers(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (index, the ids of its answer) as they end."""
        while self.waiting or self.going:
            starting = self._starting()
            if starting and self.going:
                yield from self._join(starting)
            elif starting:
                self.going, self.cache = starting, open_cache(self.generator.model)
            enough = -(-len(self.going) // SHARE_OF_ENDED) if self.cache else len(self.going)
            self._pass(self.going, self.cache, min(row.left for row in self.going), enough)
            ended, self.going = self._leave(self.going, self.cache)
            yield from ended

    def _starting(self) -> list[_Row]:
        """Take those that may start now from the rows that wait."""
        taken: list[_Row] = []
        if not self.going or (self.joins and self.cache):
            while self.waiting and self._fits([*self.going, *taken, self.waiting[0]]):
                taken.append(self.waiting.popleft())
        return taken

    def _fits(self, rows: list[_Row]) -> bool:
        if len(rows) == 1 or self.most_tokens is None:
            return True
        return len(rows) * max(row.size for row in rows) <= self.most_tokens

    def _join(self, rows: list[_Row]) -> Iterator[tuple[int, list[int]]]:
        """Read the prompts of new rows, which gives each its first token, and put them beside those that run."""
        cache = open_cache(self.generator.model)
        self._pass(rows, cache, 1, len(rows))
        ended, staying = self._leave(rows, cache)
        yield from ended
        if staying:
            join(*self.cache.values(), *cache.values())
            self.going += staying

    def _pass(self, rows: list[_Row], cache: dict[str, Any], room: int, enough: int) -> None:
        """Give each row at most `room` more tokens, until enough of them have ended."""
        from transformers import GenerationConfig, StoppingCriteriaList

        generator = self.generator
        device = next(generator.model.parameters()).device
        longest = max(row.length for row in rows)
        others = generator.other_ends([longest - len(row.answer) for row in rows], device)
        ended = Ended(torch.tensor(generator.stop_token_ids, device=device), others, enough)
        output_BT = generator.model.generate(
            **left_padded([row.ids for row in rows], generator.pad_id, device),
            **cache,
            generation_config=GenerationConfig(**generator.options(room)),
            streamer=self.streamer,
            stopping_criteria=StoppingCriteriaList([ended]),
        )
        for row, ids, has_ended in zip(
            rows, output_BT[:, longest:].tolist(), ended.rows.tolist(), strict=True
        ):
            row.answer += ids
            row.has_ended = has_ended

    def _leave(
        self, rows: list[_Row], cache: dict[str, Any]
    ) -> tuple[list[tuple[int, list[int]]], list[_Row]]:
        """Return the answers that have ended and the rows that go on, which alone stay in the cache."""
        staying = [at for at, row in enumerate(rows) if row.left]
        ended = [(row.index, self.generator.until_end(row.answer)) for row in rows if not row.left]
        going = [rows[at] for at in staying]
        if going and ended:
            cut = max(row.length for row in rows) - max(row.length for row in going)
            for kept in cache.values():
                leave(kept, staying, cut)
        return ended, going
