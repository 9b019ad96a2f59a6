"""Conversations with tools: each call is trained on where the template prints it, and is text where it prints none."""

from __future__ import annotations

import json

import pytest
from bpe import tokenizer_of
from test_template import ASK, CHATML, EACH, END, sample, trained

from swiftlet.data.template import TemplateError, build_template

CALLS = (
    "{% for call in m.tool_calls or [] %}<call>{{ {'name': call.function.name, 'arguments': call.function.arguments} "
    "| tojson }}</call>{% endfor %}"
)
WITH_TEXT = "<call>{{ call.function.name }} {{ %s }}</call>{%% endfor %%}"
TURN = "<|start|>{{ m.role }}\n{{ m.content }}" + CALLS + "<|end|>\n"
PROMPT = ASK + "<|start|>assistant\n{% endif %}"
NATIVE = "{{ tools | tojson if tools else '' }}" + EACH + TURN + END + PROMPT
THOUGHT = "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
WAYS = {
    "a marker after every turn": NATIVE,
    "an empty thought before the last answer": NATIVE.replace(
        "\n{{ m.content }}", "\n" + THOUGHT + "{{ m.content }}"
    ),
    "a prompt that opens a thought": NATIVE.replace(
        "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
    ),
    "separators between turns only": NATIVE.replace(
        "<|end|>\n", "{% if not loop.last %}<|end|>\n{% endif %}"
    ),
    "results right after calls, else refused": EACH
    + "{% if m.role == 'user' and not loop.first and messages[loop.index0 - 1].tool_calls %}"
    "{{ raise_exception('a result is missing') }}{% endif %}" + TURN + END + PROMPT,
    "no prompt for an answer": EACH + TURN + END,
}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds"}}]
QUESTION = {"role": "user", "content": "2 and 3?"}
RESULT = {"role": "tool", "content": "5"}
ANSWER = {"role": "assistant", "content": "It is 5."}


def call(*names, content=""):
    calls = [{"type": "function", "function": {"name": name, "arguments": {"x": 2}}} for name in names]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def printed(*names):
    return "".join(f"<call>{as_json(name)}</call>" for name in names)


def written(*names):
    return "\n".join(f"<tool_call>\n{as_json(name)}\n</tool_call>" for name in names)


def as_json(name):
    return json.dumps({"name": name, "arguments": {"x": 2}})


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    made = {}

    def build(chat):
        if chat not in made:
            made[chat] = tokenizer_of(tmp_path_factory.mktemp("model"), "byte_level", chat)
        return build_template(made[chat])

    return build


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([QUESTION, call("add"), RESULT, ANSWER], [printed("add"), "It is 5."]),
        ([QUESTION, call("add")], [printed("add")]),
        ([QUESTION, call("add", "sub"), RESULT, RESULT, ANSWER], [printed("add", "sub"), "It is 5."]),
        ([QUESTION, call("add", content="I add."), RESULT, ANSWER], ["I add." + printed("add"), "It is 5."]),
        ([QUESTION, call("sub", content="I add.")], ["I add." + printed("sub")]),
        (
            [QUESTION, call("add"), RESULT, call("sub"), RESULT, ANSWER, QUESTION, call("add")],
            [printed("add"), printed("sub"), "It is 5.", printed("add")],
        ),
    ],
)
def test_calls_are_trained_on_with_their_end_and_nothing_before_them(make, way, messages, expected):
    template = make(WAYS[way])
    encoded, notes = template.encode_noted(sample(messages, TOOLS if "tools" in WAYS[way] else None))
    assert trained(template, encoded) == [text + "<|end|>" for text in expected]
    assert notes == ()


def test_what_comes_before_a_call_at_inference_is_what_was_trained(make):
    template = make(NATIVE)
    encoded = template.encode(sample([QUESTION, call("add"), RESULT, ANSWER], TOOLS))
    for asked in ([QUESTION], [QUESTION, call("add"), RESULT]):
        prompt = template.encode_prompt(asked, TOOLS)
        assert encoded.input_ids[: len(prompt)] == prompt


def test_an_end_that_the_template_leaves_out_behind_one_call_alone_is_put_there(make):
    """As DeepSeek-R1's does; behind the last answer alone, as nothing can stand between a call and its result."""
    end = "{% if not m.tool_calls or m.tool_calls | length > 1 %}<|end|>{% endif %}"
    template = make(NATIVE.replace("<|end|>\n", end))
    called = printed("add")
    for messages, expected in (
        ([QUESTION, call("add")], [called + "<|end|>"]),
        ([QUESTION, call("add", "add")], [called + called + "<|end|>"]),
        ([QUESTION, call("add"), RESULT, ANSWER], [called, "It is 5.<|end|>"]),
    ):
        assert trained(template, template.encode(sample(messages, TOOLS))) == expected
    other = make(NATIVE.replace("<|end|>\n", "{{ '<call>' if m.tool_calls else '<|end|>' }}"))
    assert trained(other, other.encode(sample([QUESTION, call("add")], TOOLS))) == [called + "<call>"]


@pytest.mark.parametrize(
    ("behind", "middle", "last"),
    [
        # as Nemotron Nano 2's: behind a last call, the end token is not on a line of its own
        ("<sep>{{ '' if is_last else '\n' }}<|end|>\n", "<sep>\n<|end|>", "<sep><|end|>"),
        ("]{{ '' if is_last else '\n' }}<|end|>\n", "]\n<|end|>", "]<|end|>"),
        # as Apriel's: a last call is left open, and is printed otherwise
        ("{{ '' if is_last else ', 7' }}]{{ '' if is_last else '<|end|>' }}", ", 7]<|end|>", "]<|end|>"),
    ],
)
def test_the_end_behind_a_call_is_found_where_a_last_one_is_printed_otherwise(make, behind, middle, last):
    shown = "<|bot|>{{ m.content }}" + CALLS.replace("{% endfor %}", behind + "{% endfor %}")
    end = "{{ '' if is_last else '<|end|>' }}" if "7" in behind else "<|end|>"
    shown += "{% if not m.tool_calls %}" + end + "{% endif %}"
    others = "{{ '<sep>' if m.role == 'tool' else '<|user|>' }}{{ m.content }}<|end|>"
    speaker = "{% set is_last = loop.last %}{% if m.role == 'assistant' %}"
    template = make(
        EACH + speaker + shown + "{% else %}" + others + "{% endif %}" + END + ASK + "<|bot|>{% endif %}"
    )
    encoded = template.encode(sample([QUESTION, call("add"), RESULT, ANSWER]))
    assert trained(template, encoded) == [printed("add") + middle, "It is 5.<|end|>"]
    encoded = template.encode(sample([QUESTION, call("add")]))
    assert trained(template, encoded) == [printed("add") + last]


# takes no conversation without tools and looks into them, as Hermes 3's for tools and as Seed-OSS's
FOR_TOOLS = (
    "{% for t in tools %}{{ t.function.name }}{% for n in t.function.parameters.properties %}{{ n }}{% endfor %}"
    "{% endfor %}"
)
DESCRIBED = [{"type": "function", "function": {"name": "add", "parameters": {"properties": {"x": {}}}}}]


@pytest.mark.parametrize("end", ["<|end|>\n", "{% if not m.tool_calls %}</s>{% else %}<|end|>{% endif %}\n"])
def test_a_template_for_tools_alone_ends_calls_once_and_prints_results_itself(make, end):
    template = make(FOR_TOOLS + NATIVE.replace("<|end|>\n", end))
    answer = "It is 5." + ("</s>" if "</s>" in end else "<|end|>")
    encoded, notes = template.encode_noted(sample([QUESTION, call("add"), RESULT, ANSWER], DESCRIBED))
    assert (trained(template, encoded), notes) == ([printed("add") + "<|end|>", answer], ())
    encoded = template.encode(sample([QUESTION, call("add")], DESCRIBED))
    assert trained(template, encoded) == [printed("add") + "<|end|>"]


def test_what_a_template_prints_behind_a_call_as_another_is_not_trained_on(make):
    """As Command R+'s for tools: no end behind a call, and an instruction of the system behind the conversation."""
    chat = f"<|start|>system\n{FOR_TOOLS}<|end|>" + EACH + "<|start|>{{ m.role }}\n{{ m.content }}" + CALLS
    chat += "{% if not m.tool_calls %}<|end|>{% endif %}" + END
    template = make(chat + "<|start|>system\nUse a tool.<|end|>" + PROMPT)
    encoded = template.encode(sample([QUESTION, call("add")], DESCRIBED))
    assert trained(template, encoded) == [printed("add")]


def test_calls_and_tools_are_text_where_the_template_prints_none(make):
    template = make(CHATML)
    messages = [QUESTION, call("add", "sub", content="I add."), RESULT, ANSWER]
    encoded, notes = template.encode_noted(sample(messages, TOOLS))
    assert trained(template, encoded) == ["I add.\n" + written("add", "sub") + "<|end|>", "It is 5.<|end|>"]
    assert notes == ("calls_as_text", "tools_as_text")
    text = template.tokenizer.decode(encoded.input_ids)
    assert text.startswith("<|start|>system\nYou can call these tools") and '"description": "adds"' in text
    assert "<|start|>tool\n5<|end|>" in text
    prompt = template.encode_prompt([QUESTION], TOOLS)
    assert encoded.input_ids[: len(prompt)] == prompt


def test_tools_are_described_behind_the_system_message_of_the_row(make):
    template = make(CHATML)
    encoded = template.encode(sample([{"role": "system", "content": "Be kind."}, QUESTION, ANSWER], TOOLS))
    assert "<|start|>system\nBe kind.\n\nYou can call" in template.tokenizer.decode(encoded.input_ids)


def test_results_are_questions_where_the_template_takes_none(make):
    chat = (
        EACH + "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    )
    template = make(chat + CHATML.removeprefix(EACH))
    messages = [QUESTION, call("add", "add"), RESULT, {**RESULT, "content": "6"}, ANSWER]
    encoded, notes = template.encode_noted(sample(messages, TOOLS))
    assert trained(template, encoded) == [written("add", "add") + "<|end|>", "It is 5.<|end|>"]
    assert notes == ("calls_as_text", "results_as_text", "tools_left_out")
    results = "<tool_response>\n5\n</tool_response>\n<tool_response>\n6\n</tool_response>"
    assert f"<|start|>user\n{results}<|end|>" in template.tokenizer.decode(encoded.input_ids)


# calls, their results and then the text beside them, as Gemma 4's
TEXT_BEHIND_RESULTS = (
    EACH + "{% if m.role != 'tool' %}<|start|>{{ m.role }}\n" + CALLS + "{% if m.tool_calls %}"
    "{% for r in messages[loop.index0 + 1:] %}{% if r.role == 'tool' %}<r>{{ r.content }}</r>{% endif %}{% endfor %}"
    "{% endif %}{{ m.content }}<|end|>\n{% endif %}" + END + PROMPT
)


@pytest.mark.parametrize(
    ("chat", "messages", "fault"),
    [
        (
            TEXT_BEHIND_RESULTS,
            [QUESTION, call("add", content="I add."), RESULT, ANSWER],
            "prints the text of turn . behind the results of its calls",
        ),
        (
            NATIVE.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]"),
            [QUESTION, call("add", "sub")],
            "all",
        ),
        (NATIVE.replace(CALLS, "{{ m.tool_calls or '' }}"), [QUESTION, call("add")], "stand in the text"),
        (
            EACH + "{{ m.content }}{{ m.tool_calls[0].function.name if m.tool_calls }}" + END,
            [QUESTION, call("add")],
            "call ends",
        ),
    ],
)
def test_calls_that_are_not_printed_or_cannot_be_found_are_refused(make, chat, messages, fault):
    with pytest.raises(TemplateError, match=fault) as caught:
        make(chat).encode(sample(messages, TOOLS))
    assert "--bad_rows skip" in caught.value.hint


# calls as an answer of their own before the text beside them, and one for no text too, as DeepSeek-R1-Distill-Qwen's
CALLS_FIRST = NATIVE.replace(
    TURN,
    "{% if m.tool_calls %}<|start|>assistant\n" + CALLS + "<|end|>\n{% endif %}"
    "{% if m.content is not none %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endif %}",
)


@pytest.mark.parametrize("text", ["", "I add."])
def test_calls_before_the_text_beside_them_are_trained_on_and_no_header_or_empty_answer_behind(make, text):
    template = make(CALLS_FIRST)
    behind = [f"{text}<|end|>"] if text else []
    for names in (("add",), ("add", "sub")):
        messages = [QUESTION, call(*names, content=text), *[RESULT] * len(names), ANSWER]
        encoded, notes = template.encode_noted(sample(messages, TOOLS))
        expected = [printed(*names) + "<|end|>", *behind]
        assert (trained(template, encoded), notes) == ([*expected, "It is 5.<|end|>"], ())
        assert trained(template, template.encode(sample(messages[:2], TOOLS))) == expected


def test_a_last_call_that_is_an_answer_of_its_own_behind_the_text_has_no_label_on_its_header(make):
    """As Nemotron Nano's, which print a call and the text beside it as one answer where the conversation goes on."""
    alone = "{% if m.content and m.tool_calls and loop.last %}<|end|>\n<|start|>assistant\n{% endif %}"
    template = make(NATIVE.replace(CALLS, alone + CALLS))
    messages = [QUESTION, call("add", content="I add."), RESULT, ANSWER]
    whole = trained(template, template.encode(sample(messages, TOOLS)))
    assert whole == ["I add." + printed("add") + "<|end|>", "It is 5.<|end|>"]
    last = trained(template, template.encode(sample(messages[:2], TOOLS)))
    assert last == ["I add.<|end|>", printed("add") + "<|end|>"]


def test_a_call_that_begins_before_the_text_beside_it_is_trained_on_from_its_begin(make):
    """As Llama 4's; what stands before a text in a plain answer too is not part of what the model writes."""
    for scaffold in ("", "<think>\n\n</think>\n\n"):
        text = (
            "{% if m.tool_calls %}<py>{{ m.content }}</py>" + CALLS + "{% else %}{{ m.content }}{% endif %}"
        )
        is_answer = "{{ '" + scaffold.replace("\n", "\\n") + "' if m.role == 'assistant' }}"
        template = make(NATIVE.replace("{{ m.content }}" + CALLS, is_answer + text))
        messages = [QUESTION, call("add", content="I add."), RESULT, ANSWER]
        expected = ["<py>I add.</py>" + printed("add") + "<|end|>", "It is 5.<|end|>"]
        assert trained(template, template.encode(sample(messages, TOOLS))) == expected
        assert trained(template, template.encode(sample(messages[:2], TOOLS))) == expected[:1]


def test_an_earlier_message_that_is_printed_behind_a_call_leaves_its_begin_known(make):
    """As Mistral's system message, which stands before the last question."""
    turn = "{% if m.role != 'system' %}{{ messages[0].content if m == messages[-1] and m.role == 'user' }}"
    template = make(EACH + turn + TURN + "{% endif %}" + END + PROMPT)
    system = {"role": "system", "content": "Be brief."}
    messages = [system, QUESTION, call("add"), RESULT, ANSWER, {"role": "user", "content": "And 4?"}]
    text = template.tokenizer.decode(template.encode_prompt(messages))
    assert text.endswith("It is 5.<|end|>\nBe brief.<|start|>user\nAnd 4?<|end|>\n<|start|>assistant\n")


def test_calls_without_a_header_before_them_are_refused_by_their_turn(make):
    """As DeepSeek-R1's, which print the header of the first call of a conversation alone."""
    turn = "{% if m.role == 'assistant' %}{{ '' if m.tool_calls and loop.index > 3 else '<|bot|>' }}{{ m.content }}"
    turn += CALLS + "<|end|>{% else %}<|user|>{{ m.content }}{% endif %}"
    template = make(EACH + turn + END + ASK + "<|bot|>{% endif %}")
    messages = [QUESTION, call("add"), RESULT, ANSWER, QUESTION]
    assert trained(template, template.encode(sample(messages[:4])))[0] == printed("add") + "<|end|>"
    with pytest.raises(
        TemplateError, match="begin: chat template .* prints no header of an answer before them"
    ):
        template.encode(sample([*messages, call("sub")]))


def test_calls_get_numbers_where_the_template_must_have_some(make):
    chat = NATIVE.replace("{{ m.content }}", "{{ m.content }}{{ '#' + m.tool_call_id if m.role == 'tool' }}")
    template = make(chat.replace("<call>", "<call>{{ '#' + call.id }}"))
    encoded, notes = template.encode_noted(
        sample([QUESTION, call("add", "sub"), RESULT, RESULT, ANSWER], TOOLS)
    )
    assert notes == ("call_ids_made",)
    assert trained(template, encoded)[0].count("#00000000") == 2
    text = template.tokenizer.decode(encoded.input_ids)
    assert text.count("#000000001") == text.count("#000000002") == 2


def test_ids_that_the_template_refuses_are_numbered_and_results_stay_with_their_calls(make):
    refusal = (
        "{% if call.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}#{{ call.id }}"
    )
    chat = NATIVE.replace("<call>", "<call>" + refusal)
    template = make(
        chat.replace("{{ m.content }}", "{{ m.content }}{{ '#' ~ m.tool_call_id if m.role == 'tool' }}")
    )
    asked = call("add", "sub")
    asked["tool_calls"] = [{**one, "id": f"call_{n}"} for n, one in enumerate(asked["tool_calls"])]
    results = [{**RESULT, "content": f"of {n}", "tool_call_id": f"call_{n}"} for n in (1, 0)]
    encoded, notes = template.encode_noted(sample([QUESTION, asked, *results, ANSWER], TOOLS))
    assert notes == ("call_ids_made",)
    text = template.tokenizer.decode(encoded.input_ids)
    assert "of 1#000000002" in text and "of 0#000000001" in text
    asked["tool_calls"] = [{**one, "id": f"of_nine_{n}"} for n, one in enumerate(asked["tool_calls"])]
    assert template.encode_noted(sample([QUESTION, asked], TOOLS))[1] == ()


def test_calls_are_text_where_the_template_prints_tools_and_no_calls(make):
    template = make("{{ tools | tojson if tools else '' }}" + CHATML)
    for tools in (TOOLS, None):
        encoded, notes = template.encode_noted(sample([QUESTION, call("add"), RESULT, ANSWER], tools))
        assert trained(template, encoded) == [written("add") + "<|end|>", "It is 5.<|end|>"]
        assert notes == ("calls_as_text",)
    assert template.tokenizer.decode(encoded.input_ids).count('"description": "adds"') == 0


@pytest.mark.parametrize("arguments", ["'' + call.function.arguments", "call.function.arguments"])
def test_arguments_are_json_text_where_the_template_wants_text(make, arguments):
    template = make(NATIVE.replace(CALLS, CALLS[: CALLS.index("<call>")] + WITH_TEXT % arguments))
    encoded, notes = template.encode_noted(
        sample([QUESTION, call("add", "sub"), RESULT, RESULT, ANSWER], TOOLS)
    )
    expected = ['<call>add {"x": 2}</call><call>sub {"x": 2}</call>', "It is 5."]
    assert trained(template, encoded) == [text + "<|end|>" for text in expected]
    assert notes == ()


def test_calls_that_are_printed_without_a_text_alone_are_text_beside_one(make):
    chat = NATIVE.replace(
        "{{ m.content }}" + CALLS,
        "{% if m.content is none %}" + CALLS + "{% else %}{{ m.content }}{% endif %}",
    )
    template = make(chat)
    messages = [QUESTION, call("add"), RESULT, call("sub", content="Now less."), RESULT, ANSWER]
    encoded, notes = template.encode_noted(sample(messages, TOOLS))
    expected = [printed("add"), "Now less.\n" + written("sub"), "It is 5."]
    assert trained(template, encoded) == [text + "<|end|>" for text in expected]
    assert notes == ("calls_as_text",)


SEPARATOR = "{{ '<sep>' if m.tool_calls else '<|end|>' }}\n"
ONE_CALL = "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"


@pytest.mark.parametrize(
    ("turn", "is_end"),
    [
        (TURN.replace("<|end|>\n", SEPARATOR), True),  # as Solar and HyperCLOVA X have it
        (ONE_CALL + TURN.replace("<|end|>\n", SEPARATOR), True),  # as gpt-oss has it
        (TURN.replace("</call>", "<sep>"), False),
        (
            TURN.replace("</call>", "<sep>").replace("<|end|>\n", "{{ '' if m.tool_calls else '<|end|>' }}"),
            False,
        ),
        (TURN, False),
    ],
)
def test_a_token_that_ends_all_calls_of_an_answer_ends_it_at_inference(make, turn, is_end):
    template = make(NATIVE.replace(TURN, turn))
    tokens = [template.tokenizer.decode([one]) for one in template.stop_token_ids]
    assert tokens == ["<|end|>", "</s>", *["<sep>"] * is_end]


@pytest.mark.parametrize(
    ("chat", "label"),
    [
        (NATIVE.replace("<|end|>\n", SEPARATOR), "First." + printed("add", "sub")),
        (CHATML, "First.\n" + written("add", "sub")),
    ],
)
def test_the_label_of_an_answer_that_calls_tools_is_what_the_model_writes(make, chat, label):
    from swiftlet.commands.evaluation import sample_row

    last = {**call("add", "sub", content="First."), "thought": "So.", "loss": False}
    asked = sample([QUESTION, call("add"), RESULT, ANSWER, QUESTION, last], TOOLS)
    row = sample_row(asked, make(chat))
    assert (row.label, row.query) == (label, "2 and 3?")
    spoken = sample([QUESTION, call("add"), RESULT, ANSWER], TOOLS)
    assert sample_row(spoken, make(chat)).label == "It is 5."


def test_the_label_of_calls_that_cannot_be_printed_is_not_known(make):
    from swiftlet.commands.evaluation import sample_row

    template = make(NATIVE.replace(TURN, ONE_CALL + TURN))
    assert sample_row(sample([QUESTION, call("add", "sub")], TOOLS), template).label is None


def test_rows_that_a_template_refuses_are_not_asked_where_they_may_be_skipped(make, capsys):
    from swiftlet.commands.evaluation import sample_rows

    template = make(NATIVE.replace(TURN, ONE_CALL + TURN))
    samples = [sample([QUESTION, call(*names), RESULT, ANSWER], TOOLS) for names in (["add"], ["add", "sub"])]
    rows = sample_rows(samples, template, "skip")
    assert [row.label for row in rows] == ["It is 5."]
    assert f"1 of 2 rows are not asked, such as {samples[1].origin}: chat template" in capsys.readouterr().err
    with pytest.raises(
        TemplateError, match=f"^{samples[1].origin}: chat template .* cannot render"
    ) as caught:
        sample_rows(samples, template, "error")
    assert caught.value.hint.startswith("leave such rows out with --bad_rows skip")
