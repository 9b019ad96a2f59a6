"""The words that steer a chat, its history, and ways to leave it."""

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
