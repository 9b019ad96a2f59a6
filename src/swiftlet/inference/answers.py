"""Answers to the rows of a dataset: batched by length, spread over processes, written as they come.

A row whose prompt leaves no room in the context is not dropped: its response is null and `error` says why.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet import log
from swiftlet.errors import DataError, SaveError
from swiftlet.files import write_whole
from swiftlet.inference.generate import Generator, Reply

PROGRESS_BAR_ABOVE = 100


class Row(NamedTuple):
    """A question with its history and the answer that was expected, None where the row has none."""

    prompt_ids: list[int]
    query: str
    label: str | None
    history: list[list[str]]
    system: str | None


def row_of(
    messages: Sequence[dict[str, Any]], encode_prompt: Callable[[list[dict[str, Any]]], list[int]]
) -> Row:
    """Return the last turn of a conversation as a question, and its answer, where it has one, as the label.

    Calls of tools and their results are in the prompt; a turn before the last is its question and its last answer.
    """
    label: str | None = None
    asked = list(messages)
    if asked and asked[-1]["role"] == "assistant":
        label = asked.pop()["content"] or ""
    system = asked[0]["content"] if asked and asked[0]["role"] == "system" else None
    history: list[list[str]] = []
    for message in asked:
        if message["role"] == "user":
            history.append([message["content"], ""])
        elif message["role"] == "assistant":
            history[-1][1] = message["content"] or ""
    query = history.pop()[0] if history else ""
    return Row(encode_prompt(asked), query, label, history, system)


def answer_rows(
    generator: Generator, rows: Sequence[Row], *, batch_tokens: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index of the row, its result) for the rows of this process, longest prompts first."""
    prompts: dict[int, list[int]] = {}
    for index in range(rank, len(rows), world_size):
        try:
            generator.room(len(rows[index].prompt_ids))
        except DataError as error:
            yield index, {**_result(rows[index], None), "error": error.message}
        else:
            prompts[index] = rows[index].prompt_ids
    indices = list(prompts)
    for at, reply in generator.replies_as_they_end(list(prompts.values()), batch_tokens):
        yield indices[at], _result(rows[indices[at]], reply)


def _result(row: Row, reply: Reply | None) -> dict[str, Any]:
    """Return what is written of a row; None for one that was not asked."""
    result = {
        "response": None if reply is None else reply.text,
        "query": row.query,
        "label": row.label,
        "history": row.history,
        "system": row.system,
    }
    return result if reply is None or reply.answer is None else {**result, "answer": reply.answer}


def compared(result: Mapping[str, Any], end_of_thought: str) -> str:
    """Return what of a result is compared with its label: the answer behind a thought, where the label holds none.

    Args:
        end_of_thought: what stands between a thought and its answer; '' for nothing.
    """
    holds_thought = bool(end_of_thought) and end_of_thought in (result["label"] or "")
    return result["response"] or "" if holds_thought else result.get("answer", result["response"]) or ""


class ResultFile:
    """A file of results, one object a line, in the order of the rows once it is closed.

    Its name is taken with the first answer. Where another run of the same second has it, a number is put behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[int, dict[str, Any]] = {}
        self._has_name = False

    def add(self, index: int, result: dict[str, Any]) -> None:
        """Keep the result of a row and append it to the draft, so that nothing is lost when the run ends early."""
        self.results[index] = result
        with self._writing():
            self._take_name()
            with self._draft().open("a", encoding="utf-8") as file:
                file.write(json.dumps({"row": index, **result}, ensure_ascii=False) + "\n")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Say where the answers so far are when the block is left before its end."""
        is_over = False
        try:
            yield
            is_over = True
        finally:
            if not is_over and self.results:
                log.warning(f"{len(self.results)} answers so far are in {self._draft()}")

    def _draft(self) -> Path:
        return self.path.with_suffix(".partial.jsonl")

    def _take_name(self) -> None:
        """Make the draft under a name that is free: as long as a run goes on its draft is there, then its results."""
        wanted = self.path
        for number in itertools.count(1):
            if self._has_name:
                return
            with suppress(FileExistsError):
                self._draft().open("x").close()
                self._has_name = not self.path.exists()
                if not self._has_name:
                    self._draft().unlink()
            if not self._has_name:
                self.path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")

    def discard(self) -> None:
        """Remove the draft: its results are in another file."""
        if self._has_name:
            self._draft().unlink(missing_ok=True)

    def close(self) -> list[dict[str, Any]]:
        """Write the results in the order of the rows, remove the draft, and return them."""
        ordered = [self.results[index] for index in sorted(self.results)]
        text = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in ordered)
        with self._writing():
            self._take_name()
            write_whole(self.path, text)
            self.discard()
        return ordered

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise SaveError(
                f"{self.path} could not be written: {error.strerror}; answers so far may be in {self._draft().name}",
                "free space there, or type --result_dir FOLDER",
            ) from error
