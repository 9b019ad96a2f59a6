"""The words that steer a chat, its history, and ways to leave it."""

import os
import pty
import sys
from contextlib import suppress

import pytest

from swiftlet.errors import DataError
from swiftlet.inference.chat import GREETING, Chat


def talk(*lines, answer=None, system=None):
    """Run a chat over the lines and return (chat, conversations that were asked, what was printed)."""
    asked, shown, waiting = [], [], list(lines)

    def read(prompt):
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    def echo(messages, on_text):
        asked.append(messages)
        on_text("echo ")
        on_text(messages[-1]["content"])
        return f"echo {messages[-1]['content']}"

    chat = Chat(answer or echo, read, shown.append, system)
    chat.run()
    return chat, asked, "".join(shown)


def test_history_grows_and_clear_forgets_it():
    _, asked, shown = talk("a", "b", "clear", "c", "exit", "never")
    assert [len(messages) for messages in asked] == [1, 3, 1]
    assert asked[1][1] == {"role": "assistant", "content": "echo a"}
    assert shown.startswith(GREETING)
    assert "echo b" in shown


def test_multi_line_until_a_hash_and_back():
    _, asked, _ = talk("multi-line", "one", "two", "#", "three#", "single-line", "four", "quit")
    assert [messages[-1]["content"] for messages in asked] == ["one\ntwo", "three", "four"]


def test_reset_system_starts_over():
    _, asked, _ = talk("a", "reset-system", "be brief", "b", system="old")
    assert asked[0][0] == {"role": "system", "content": "old"}
    assert asked[1] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "b"}]


@pytest.mark.parametrize("leaving", [EOFError, KeyboardInterrupt])
def test_the_chat_is_left_where_a_system_prompt_is_asked_for(leaving):
    def read(prompt):
        if prompt == "system <<< ":
            raise leaving
        return "reset-system"

    shown = []
    chat = Chat(None, read, shown.append, "old")
    chat.run()
    assert shown[-1] == "\n" and chat.system == "old"


def test_lines_before_the_end_of_the_input_are_answered():
    _, asked, _ = talk("multi-line", "one", "two")
    assert [messages[-1]["content"] for messages in asked] == ["one\ntwo"]


def test_what_is_not_utf8_is_named_and_the_chat_goes_on():
    chat, asked, shown = talk("good \udcff\udcfe x", "reset-system", "\udcff", "next", system="old")
    assert [messages[-1]["content"] for messages in asked] == ["next"]
    assert chat.system == "old"
    assert (
        "'\\udcff\\udcfe' is not UTF-8, as typed after 'good '\nhint: type it again, in a terminal" in shown
    )


def test_an_empty_line_asks_nothing():
    assert talk("", "  ", "exit")[1] == []


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said():
    def answer(messages, on_text):
        on_text("half")
        raise KeyboardInterrupt

    chat, _, shown = talk("a", answer=answer)
    assert chat.history[-1]["content"] == "half"
    assert "[stopped]" in shown


def test_a_full_context_is_said_and_the_chat_goes_on():
    def answer(messages, on_text):
        raise DataError("too long", "type clear")

    chat, _, shown = talk("a", "exit", answer=answer)
    assert "too long\nhint: type clear" in shown
    assert chat.history == []


def test_an_answer_that_is_stopped_before_its_first_word_is_no_turn():
    def answer(messages, on_text):
        raise KeyboardInterrupt

    chat, _, shown = talk("a", answer=answer)
    assert chat.history == []
    assert "[stopped]" in shown


def test_a_line_at_a_terminal_is_read_to_its_end():
    """The kernel keeps 4095 bytes of a line that is typed; a question that is pasted is often longer."""
    code = "from swiftlet.inference.chat import line_reader; print(len(line_reader()('<<< ')), 'letters')"
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    with suppress(OSError):  # the child has ended
        while b"<<< " not in shown:
            shown += os.read(terminal, 1 << 16)
        for _ in range(12):
            os.write(terminal, b"x" * 500)
            shown += os.read(terminal, 1 << 16)
        os.write(terminal, b"\n")
        while b" letters" not in shown:
            shown += os.read(terminal, 1 << 16)
    os.waitpid(child, 0)
    assert b"6000 letters" in shown
