"""A conversation at the terminal: history, and the words that steer it.

`exit` or `quit` ends, `clear` forgets the history, `multi-line` reads lines until one that is only `#`,
`single-line` goes back, `reset-system` asks for another system prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from swiftlet.errors import DataError

GREETING = (
    "type a question; exit, clear, multi-line (end with #), single-line and reset-system steer the chat"
)
END_OF_LINES = "#"


def line_reader() -> Callable[[str], str]:
    """Return what asks for a line, at a terminal with editing and history.

    A terminal by itself hands over no more than 4095 bytes of a line: the end of a long question would be lost.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401, its import changes input()
    return input


class Answerer(Protocol):
    """What a chat needs of a model: what it writes to a conversation, piece by piece, and what of it is its answer."""

    def __call__(self, messages: list[dict[str, Any]], on_text: Callable[[str], None]) -> str: ...


class Chat:
    """One conversation.

    Args:
        answer: gives the answer to the messages so far.
        read: asks for a line; raises EOFError at the end of the input.
        write: prints text as it is.
        system: the system prompt, None for the model's own.
    """

    def __init__(
        self,
        answer: Answerer,
        read: Callable[[str], str],
        write: Callable[[str], None],
        system: str | None = None,
    ) -> None:
        self.answer = answer
        self.read = read
        self.write = write
        self.system = system
        self.history: list[dict[str, Any]] = []
        self.is_multi_line = False

    def run(self) -> None:
        """Talk until the user leaves."""
        self.write(GREETING + "\n")
        while True:
            try:
                text = self._question()
                if text.strip().lower() in ("exit", "quit"):
                    return
                is_steered = self._steered(text.strip().lower())
            except (EOFError, KeyboardInterrupt):
                self.write("\n")
                return
            if not is_steered and text.strip() and self._is_readable(text):
                self._ask(text)

    def _question(self) -> str:
        if not self.is_multi_line:
            return self.read("<<< ")
        line = self.read("<<<[multi-line] ")
        if line.strip().lower() in ("exit", "quit", "clear", "single-line", "reset-system"):
            return line
        lines = []
        while line.rstrip() != END_OF_LINES:
            if line.endswith(END_OF_LINES):
                lines.append(line[: -len(END_OF_LINES)])
                break
            lines.append(line)
            try:
                line = self.read("")
            except EOFError:  # what was typed is answered; the next read leaves
                break
        return "\n".join(lines)

    def _steered(self, word: str) -> bool:
        if word == "clear":
            self.history = []
        elif word == "multi-line":
            self.is_multi_line = True
        elif word == "single-line":
            self.is_multi_line = False
        elif word == "reset-system":
            text = self.read("system <<< ")
            if self._is_readable(text):
                self.system, self.history = text, []
        else:
            return False
        return True

    def _is_readable(self, text: str) -> bool:
        """Return whether a typed text is whole; say what is wrong with one that is not UTF-8."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.write(
                f"{ascii(text[error.start : error.end])} is not UTF-8, as typed after {text[: error.start]!r}\n"
                "hint: type it again, in a terminal that is set to UTF-8\n"
            )
            return False
        return True

    def messages(self, question: str) -> list[dict[str, Any]]:
        """Return the conversation that ends with `question`."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.history, {"role": "user", "content": question}]

    def _ask(self, question: str) -> None:
        pieces: list[str] = []

        def on_text(text: str) -> None:
            pieces.append(text)
            self.write(text)

        try:
            answer = self.answer(self.messages(question), on_text)
        except KeyboardInterrupt:
            self.write(" [stopped]")
            answer = "".join(pieces)
            if not answer:  # a turn that says nothing would be in every prompt from here on
                self.write("\n")
                return
        except DataError as error:
            self.write(f"{error}\n")
            return
        self.write("\n" + "-" * 50 + "\n")
        self.history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
