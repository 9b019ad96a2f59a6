"""What was thought before an answer is trained on as the chat template prints it, or named as not printed."""

from __future__ import annotations

import pytest
from bpe import tokenizer_of
from test_template import CHATML, sample, talk, trained

from swiftlet.data.template import build_template

SPLIT = (
    "{% set answer = m.content %}{% set thought = m.reasoning_content %}{% if '</think>' in answer %}"
    "{% set thought = answer.split('</think>')[0].split('<think>')[-1] %}"
    "{% set answer = answer.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
TAGS = "<think>\n%s\n</think>\n\n"
STRIPPED, RAW = "{{ thought.strip('\n') }}", "{{ thought }}"
KEPT = SPLIT + "{% if thought %}" + TAGS % STRIPPED + "{% endif %}{{ answer }}"  # as Qwen 3 has it
LAST = KEPT.replace("{% if thought %}", "{% if thought and loop.last %}")
# as MiniMax M2 has it: what is in an answer is stripped, and what is in its key is not
UNEVEN = KEPT.replace(STRIPPED, RAW).replace("[-1] %}", "[-1].strip('\n') %}")
# as Spark has it: an answer without a thought begins with the tag that closes one
CLOSED = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}{% endif %}</think>{{ m.content }}"
CHANNELS = (  # as gpt-oss has it: another header stands between a thought and its answer
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}<|end|>\n<|start|>assistant\n{% endif %}"
    "<answer>{{ m.content }}"
)
OTHERWISE = {
    CLOSED: "<think>%s</think>%s<|end|>",
    CHANNELS: "<think>%s<|end|>\n<|start|>assistant\n<answer>%s<|end|>",
}
PLAIN = "{% if m.role == 'assistant' %}%s{% else %}{{ m.content }}{% endif %}"
PRINTED = "<think>\nLet me see.\n</think>\n\nyes<|end|>"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def build(answer, prompt=""):
        chat = CHATML.replace("{{ m.content }}", PLAIN.replace("%s", answer))
        chat = chat.replace("assistant\n{% endif %}", f"assistant\n{prompt}{{% endif %}}")
        return build_template(tokenizer_of(tmp_path_factory.mktemp("model"), "byte_level", chat))

    return build


def thinking(*turns):
    """Return a conversation; an answer is (thought, text)."""
    return [
        message | ({} if isinstance(turn, str) else {"content": turn[1], "thought": turn[0]})
        for message, turn in zip(talk(*turns), turns, strict=True)
    ]


@pytest.mark.parametrize("thought", ["Let me see.", "\nLet me see.\n"])
def test_a_thought_is_trained_on_with_its_tags(make, thought):
    template = make(KEPT)
    messages = thinking("Is it?", (thought, "yes"))
    encoded, notes = template.encode_noted(sample(messages))
    assert (trained(template, encoded), notes) == ([PRINTED], ())
    beside = [*talk("Is it?"), {"role": "assistant", "content": "yes", "reasoning_content": thought}]
    assert template.tokenizer.decode(encoded.input_ids) == template.chat.render(beside)
    assert encoded == template.encode(sample(talk("Is it?", PRINTED.removesuffix("<|end|>"))))
    assert messages[1]["thought"] == thought  # the row is left as it is


def test_a_thought_written_into_the_answer_is_learnt_likewise(make):
    template = make(KEPT)
    for answer, notes in (
        (PRINTED.removesuffix("<|end|>"), ()),
        ("<think>Let me see.</think>yes", ("answer_altered",)),
    ):
        encoded, found = template.encode_noted(sample(talk("Is it?", answer)))
        assert (trained(template, encoded), found) == ([PRINTED], notes)


def test_white_space_that_the_key_keeps_is_learnt(make):
    template = make(UNEVEN)
    encoded, notes = template.encode_noted(sample(thinking("Is it?", ("\nLet me see.\n", "yes"))))
    assert (trained(template, encoded), notes) == (["<think>\n\nLet me see.\n\n</think>\n\nyes<|end|>"], ())


@pytest.mark.parametrize(
    "thought", ["Let me see.", "\n Let me see.\n", "yes", "</think>", "<|end|>", "a <think> b"]
)
@pytest.mark.parametrize("answer", OTHERWISE)
def test_a_thought_that_is_printed_otherwise_than_in_an_answer_is_trained_on_up_to_the_answer(
    make, answer, thought
):
    template = make(answer)
    chat = thinking("Is it?", (thought, "yes"), "And now?", (thought, "no"))
    encoded, notes = template.encode_noted(sample(chat))
    expected = [OTHERWISE[answer] % (thought, text) for text in ("yes", "no")]
    assert (trained(template, encoded), notes) == (expected, ())
    beside = [message | {"reasoning_content": message.get("thought")} for message in chat]
    assert template.tokenizer.decode(encoded.input_ids) == template.chat.render(beside)
    prompt = template.tokenizer.decode(template.encode_prompt(chat[:3]))
    assert prompt == template.chat.render(beside[:3], generation_prompt=True)
    end = template.tokenizer.id_of("<|end|>")  # what a text spells is no control token
    ends = template.tokenizer.encode(template.chat.render([message | {"thought": ""} for message in chat]))
    assert encoded.input_ids.count(end) == ends.count(end) + 2 * (answer == CHANNELS)
    assert template.encode(sample(chat)) == encoded  # the second is filled into what is known of the first


def test_a_thought_before_a_call_is_trained_on_with_it(make):
    template = make(
        CLOSED + "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}
    asked = {"role": "assistant", "content": "", "thought": "Let me see.", "tool_calls": [call]}
    result = {"role": "tool", "content": "5"}
    encoded = template.encode(sample([*talk("Is it?"), asked, result, *talk("", "yes")[1:]]))
    called = '<think>Let me see.</think><call>{"name": "add", "arguments": {"x": 2}}</call><|end|>'
    assert trained(template, encoded) == [called, "yes<|end|>"]


def test_a_prompt_that_opens_a_thought_and_ends_it_is_not_learnt(make):
    template = make(CLOSED, "<think></think>")
    encoded = template.encode(sample(thinking("Is it?", ("Let me see.", "yes"))))
    assert trained(template, encoded) == ["Let me see.</think>yes<|end|>"]


def test_thoughts_that_a_template_refuses_are_left_out(make):
    template = make("{% if m.thinking %}{{ raise_exception('no thoughts') }}{% endif %}{{ m.content }}")
    encoded, notes = template.encode_noted(sample(thinking("Is it?", ("Let me see.", "yes"))))
    assert (trained(template, encoded), notes) == (["yes<|end|>"], ("reasoning_unused",))


def test_thoughts_of_earlier_answers_are_left_out_where_the_template_leaves_them_out(make):
    chat = thinking("Is it?", ("Let me see.", "yes"), "And now?", ("Let me see again.", "no"))
    last = "<think>\nLet me see again.\n</think>\n\nno<|end|>"
    for answer, expected in (
        (KEPT, ([PRINTED, last], ())),
        (LAST, (["yes<|end|>", last], ("reasoning_left_out",))),
    ):
        template = make(answer)
        encoded, notes = template.encode_noted(sample(chat))
        assert (trained(template, encoded), notes) == expected
    prompt = template.tokenizer.decode(template.encode_prompt(chat[:3]))
    assert "yes" in prompt and "think" not in prompt


def test_a_thought_that_is_not_printed_is_named(make):
    template = make("{{ m.content }}")
    for thought in ("Let me see.", "yes"):
        encoded, notes = template.encode_noted(sample(thinking("Is it?", (thought, "yes"))))
        assert notes == ("reasoning_unused",)
        assert encoded == template.encode(sample(talk("Is it?", "yes")))


def test_a_marker_that_ends_thoughts_too_ends_only_an_answer(make):
    template = make(CHANNELS)
    thoughts, encode = template.thoughts, template.tokenizer.encode
    assert [template.tokenizer.decode([one]) for one in thoughts.markers] == ["<|end|>"]
    assert thoughts.markers[0] not in template.stop_token_ids
    thought, answer = "<think>so<|end|>", "\n<|start|>assistant\n<answer>yes<|end|>"
    for text, ends in (
        (thought, False),
        (thought + answer, True),
        ("<answer>no<|end|>", True),
        ("no", False),
    ):
        assert thoughts.ends_answer(encode(text)) is ends, text
    assert thoughts.answer(encode(thought + answer)) == "yes"
    assert (
        thoughts.answer(encode("<answer>no<|end|>")) == "no"
    )  # its header is no part of an answer without a thought
    assert make(KEPT).thoughts.markers == () and make(KEPT).thoughts.opening == "<think>"


def test_what_a_model_wrote_behind_its_thought_is_its_answer(make):
    for printed in (KEPT, CLOSED):
        template = make(printed)
        for text, expected in (
            ("<think>\nso\n</think>\n\nyes", "yes"),
            ("so</think>yes<|end|>", "yes"),
            ("yes", None),
        ):
            assert template.thoughts.answer(template.tokenizer.encode(text)) == expected, text
    assert make("{{ m.content }}").thoughts.answer(template.tokenizer.encode("<think>so</think>yes")) is None
