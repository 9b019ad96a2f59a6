"""What was thought before an answer is trained on as the chat template prints it, or named as not used."""

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
PLAIN = "{% if m.role == 'assistant' %}%s{% else %}{{ m.content }}{% endif %}"
PRINTED = "<think>\nLet me see.\n</think>\n\nyes<|end|>"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def build(answer):
        chat = CHATML.replace("{{ m.content }}", PLAIN.replace("%s", answer))
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


def test_white_space_that_only_the_key_keeps_is_not_learnt(make):
    template = make(UNEVEN)
    encoded, notes = template.encode_noted(sample(thinking("Is it?", ("\nLet me see.\n", "yes"))))
    assert (trained(template, encoded), notes) == ([PRINTED], ())


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


@pytest.mark.parametrize("answer", ["{{ m.content }}", CLOSED])
def test_a_thought_that_is_not_printed_like_a_part_of_an_answer_is_named(make, answer):
    template = make(answer)
    for thought in ("Let me see.", "yes"):
        encoded, notes = template.encode_noted(sample(thinking("Is it?", (thought, "yes"))))
        assert notes == ("reasoning_unused",)
        assert encoded == template.encode(sample(talk("Is it?", "yes")))
