"""Rows that are no conversation: the reason and the place of each, and never their text."""

import pytest
from test_formats import fault_of, sample_of, turns

UNSEEN = "nothing but invisible characters"
TOOL_TURN = {"role": "tool", "content": "1"}
SYSTEM = {"role": "system", "content": "s"}


def said(role, content, **more):
    return {"role": role, "content": content} | more


@pytest.mark.parametrize(
    ("chat", "reason", "detail"),
    [
        ([*turns("a", "b"), said("user", "c")], "no_answer", "ends with a user turn: no answer to learn"),
        (turns("a"), "no_answer", "ends with a user turn"),
        ([SYSTEM], "no_answer", "only a system turn"),
        ([*turns("a", "f(1)"), TOOL_TURN], "no_answer", "ends with a tool result: no answer after it"),
        (
            [said("assistant", "b"), *turns("a", "b")],
            "role_order",
            "turn 0: the conversation starts with the assistant",
        ),
        (
            [SYSTEM, said("assistant", "b")],
            "role_order",
            "turn 1: the conversation starts with the assistant",
        ),
        ([*turns("a", "b"), said("assistant", "c")], "role_order", "turns 1 and 2 are both assistant"),
        ([said("user", "a"), *turns("a", "b")], "role_order", "turns 0 and 1 are both user"),
        ([SYSTEM, SYSTEM, *turns("a", "b")], "role_order", "turn 1: a second system turn"),
        ([*turns("a", "b"), SYSTEM, *turns("a", "b")], "role_order", "turn 2: a system turn in the middle"),
        (
            [said("user", "a"), TOOL_TURN, said("assistant", "b")],
            "role_order",
            "turn 1: a tool result without a call",
        ),
        (
            [*turns("a", "b"), TOOL_TURN, said("assistant", "c")],
            "role_order",
            "turn 2: a tool result without a call",
        ),
        ([*turns("a", "f(1)"), TOOL_TURN, *turns("c", "d")], "role_order", "turn 3: user behind tool"),
        ([said("user", "a"), said("bing", "b")], "role_unknown", 'turn 1: unknown role "bing"'),
        (
            [said("User", "a"), said("Assistant", "b")],
            "role_unknown",
            'unknown role "User" (did you mean user?)',
        ),
        ([said("user", "a"), said(7, "b")], "schema", "turn 1: the role is not a text"),
        ([{"content": "a"}, said("assistant", "b")], "schema", "turn 0 has no role (its keys: content)"),
        ([{"ask": "a", "reply": "b"}], "schema", "turn 0 has no role (its keys: ask, reply)"),
        ([{"input": "", "output": "b"}], "empty_user", "turn 0 (user): content is empty"),
        ([{"input": "a", "output": None}], "empty_assistant", "turn 0 (assistant): content is null"),
        (
            [{"instruction": "i", "input": "a", "output": "b"}],
            "schema",
            "turn 0 has no role (its keys: input, instruction, output)",
        ),
        ([{"human": "a", "assistant": "b", "input": "c", "output": "d"}], "schema", "turn 0 has no role"),
        (
            [{"role": "user", "from": "gpt", "content": "a"}, *turns("a", "b")[1:]],
            "columns",
            "turn 0: role and from say different things",
        ),
        (
            [*turns("a"), said("assistant", "b", value="c")],
            "columns",
            "turn 1: content and value say different things",
        ),
        (
            [*turns("a"), said("assistant", "b", loss=False), said("tool_call", {"name": "f"})],
            "schema",
            "turn 2: of a call and the answer before it, one is not trained on",
        ),
        (
            [*turns("a"), said("tool_call", {"name": "f"}, loss=False)],
            "no_label_tokens",
            "loss is false in every answer",
        ),
        ([*turns("a"), said("tool_call", {"name": "f"}, loss=2)], "schema", "turn 1: loss is not true or"),
        ([said("system", None)], "no_answer", "only a system turn"),
        ([{"input": "a", "output": "b", "loss": 0}], "no_label_tokens", "loss is false in every answer"),
        (
            [{"role": "user", "words": "a"}, said("assistant", "b")],
            "schema",
            "has no content (its keys: role, words)",
        ),
        (
            [said("user", "a"), said("assistant", None)],
            "empty_assistant",
            "content is null and there are no tool_calls",
        ),
        (
            [said("user", "a"), said("assistant", " \n")],
            "empty_assistant",
            "turn 1 (assistant): content is empty",
        ),
        ([said("user", None), said("assistant", "b")], "empty_user", "turn 0 (user): content is null"),
        (
            [said("user", "a"), said("assistant", 4)],
            "schema",
            "turn 1 (assistant): content is a number, not a text",
        ),
        ([said("user", {"a": 1}), said("assistant", "b")], "schema", "content is an object, not a text"),
        (["hi", "hello"], "schema", "turn 0 is a text, expected an object"),
        ([turns("a", "b")], "schema", "turn 0 is a list, expected an object"),
        ({"role": "user", "content": "a"}, "schema", "messages is an object, expected a list"),
        ("words", "schema", "messages is a text that is not JSON"),
        ("[" * 100_000, "nesting", "messages is nested too deep"),
        ("[]", "schema", "messages is an empty list"),
        ([said("user", [{"type": "image_url", "image_url": "x"}])], "multimodal", "content part image_url"),
        (
            [said("user", [{"type": "input_audio", "data": "x"}])],
            "multimodal",
            "multimodal content part input_audio",
        ),
        ([said("user", [{"type": "thought", "text": "x"}])], "schema", "content part thought is not text"),
        ([said("user", [{"type": ["x"]}])], "schema", "content part of unknown type is not text"),
        ([said("user", [{"type": "text", "text": None}])], "schema", "content part text holds no text"),
        ([said("user", [5])], "schema", "a content part is a number"),
        (
            [said("user", [{"type": "thinking", "thinking": "x"}])],
            "schema",
            "content part thinking is not text; one is read, as the first part of an answer",
        ),
        (
            [*turns("a"), said("assistant", ["b", {"type": "thinking", "thinking": "x"}])],
            "schema",
            "turn 1 (assistant): content part thinking is not text; one is read",
        ),
        (
            [*turns("a"), said("assistant", [{"type": "thinking", "thinking": []}, "b"])],
            "schema",
            "turn 1 (assistant): content part thinking holds no text",
        ),
        (
            [*turns("a"), said("assistant", [{"type": "thinking", "thinking": "x"}])],
            "empty_assistant",
            "turn 1 (assistant): content is empty",
        ),
        (
            [*turns("a"), said("assistant", [{"type": "thinking", "thinking": "x"}, "b"], thinking="y")],
            "columns",
            "turn 1: two thoughts before one answer say different things",
        ),
        (
            [said("user", "a"), said("assistant", "b", loss=False)],
            "no_label_tokens",
            "loss is false in every answer",
        ),
        (
            [said("user", "a"), said("assistant", "b", weight=3)],
            "schema",
            "turn 1: weight is not true or false",
        ),
        ([said("user", "a"), said("tool_call", "no json")], "schema", "tool call is a text that is not JSON"),
        (
            [said("user", "a"), said("gpt", "\u2060")],
            "empty_assistant",
            f"turn 1 (assistant): content is {UNSEEN}",
        ),
        ([said("user", "a"), said("tool_call", "[]")], "empty_assistant", "turn 1: an empty tool call"),
        ([said("user", "a"), said("tool_call", "7")], "schema", "turn 1: tool call is not an object"),
        ([said("user", "a"), said("tool_call", [7])], "schema", "turn 1: tool call is not an object"),
        ([said("user", "a"), said("tool_call", {"f": 1})], "schema", "turn 1: tool call has no name"),
        ([said("user", "a"), said("tool_call", {"name": " "})], "schema", "turn 1: tool call has no name"),
        ([said("assistant", "", tool_calls=[{"name": "f"}])], "role_order", "starts with the assistant"),
        (
            [said("user", "a\ud83d"), said("assistant", "b")],
            "surrogate",
            "turn 0 (user): half of a surrogate",
        ),
        (
            [said("user", "a"), said("tool_call", {"name": "f", "arguments": {"x": "\ud83d"}})],
            "surrogate",
            "turn 1 (assistant): half of",
        ),
    ],
)
def test_f39_f40_conversations_that_are_none(chat, reason, detail):
    fault = fault_of({"messages": chat})
    assert fault.reason == reason
    assert detail in fault.detail


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"query": "q", "response": None}, "empty_assistant", "column response is null"),
        ({"query": "q", "response": " \n"}, "empty_assistant", "column response is empty"),
        ({"query": "q", "response": "\ufeff \u200b"}, "empty_assistant", f"column response is {UNSEEN}"),
        (
            {"query": "q", "response": "a", "history": [["\u200b", "b"]]},
            "empty_user",
            f"history[0][0] is {UNSEEN}",
        ),
        ({"query": "q", "response": None, "answer": "4"}, "empty_assistant", "column response is null"),
        ({"query": "q", "response": 4}, "schema", "column response is a number, not a text"),
        ({"query": "q", "response": True}, "schema", "column response is true or false, not a text"),
        (
            {"query": "q", "response": float("nan")},
            "schema",
            "column response is a number (NaN), not a text; where it stands for a missing value, write null: jq -c '.'",
        ),
        (
            {"query": "q", "response": float("inf")},
            "schema",
            "column response is a number (Infinity), not a text",
        ),
        (
            {"messages": [*turns("a"), said("assistant", float("nan"))]},
            "schema",
            "turn 1 (assistant): content is a number (NaN), not a text",
        ),
        (
            {"text": turns("a", "b")},
            "schema",
            "column text is a list, not a text; name the chat with --columns text=messages",
        ),
        ({"query": "q", "response": {"a": 1}}, "schema", "column response is an object, not a text"),
        ({"query": "q", "response": ["a"]}, "schema", "column response is a list, not a text"),
        ({"query": "q", "response": b"a"}, "schema", "column response is a value of type bytes, not a text"),
        ({"query": "", "response": "r"}, "empty_user", "query is empty"),
        ({"query": 3, "response": "r"}, "schema", "column query is a number, not a text"),
        ({"instruction": "", "input": "", "output": "o"}, "empty_user", "instruction and input are empty"),
        ({"question": None, "answer": "a"}, "empty_user", "question is empty"),
        ({"question": "q", "answer": None}, "empty_assistant", "column answer is null"),
        ({"text": ""}, "empty_assistant", "column text is empty"),
        ({"text": 5}, "schema", "column text is a number, not a text"),
        ({"messages": []}, "schema", "column messages is empty"),
        (
            {"input_ids": [1], "labels": [1]},
            "tokenized",
            "already tokenized (column input_ids): text is expected",
        ),
        (
            {"instruction": "i", "chosen": "g", "rejected": "b"},
            "preference",
            "column chosen: preference data",
        ),
        ({"messages": turns("a", "b"), "rejected_response": "c"}, "preference", "column rejected_response"),
        (
            {
                "input": {"messages": turns("a")},
                "preferred_output": turns("a", "b")[1:],
                "non_preferred_output": turns("a", "c")[1:],
            },
            "preference",
            "column preferred_output: preference data",
        ),
        (
            {"query": "q", "response": "r", "images": ["a.png"]},
            "multimodal",
            "column images: only text is trained on",
        ),
        ({"input": "q", "output": "r", "image": {"bytes": b""}}, "multimodal", "column image"),
        (
            {"question": "q", "answer": "4", "solution": "2+2"},
            "columns",
            "columns: answer, solution; choose with --columns answer=response or --columns solution=response",
        ),
        (
            {"question": "q", "prompt": "p", "answer": "4"},
            "columns",
            "ambiguous question columns: prompt, question",
        ),
        ({"query": "q", "response": "r", "system": 5}, "schema", "column system is a number, not a text"),
        ({"query": "q", "response": "r", "tools": "f()"}, "schema", "tools is a text that is not JSON"),
        ({"query": "q", "response": "r", "tools": 5}, "schema", "tools is not a list"),
        ({"query": "q", "response": "r", "tools": [5]}, "schema", "tools[0] is not an object"),
        (
            {"query": "q", "response": "r", "tools": {"add": {"description": "adds"}, "sub": {}}},
            "schema",
            "tools[0] holds objects under the names add, sub and is no description of a tool; write tools as [",
        ),
        (
            {"query": "q", "response": "r", "tools": [{"x": "\udc00"}]},
            "surrogate",
            "tools: half of a surrogate pair",
        ),
        ({"query": "q", "response": "r\ud83d"}, "surrogate", "column response: half of a surrogate pair"),
        ({"text": "\udfff"}, "surrogate", "column text: half of a surrogate pair"),
        ({"id": "\udfff", "query": "q\ud83d", "response": "r"}, "surrogate", "column query: half of"),
        (
            {"query": "q", "response": "r", "history": [["a", "b\ud83d"]]},
            "surrogate",
            "turn 1 (assistant): half of a surrogate pair",
        ),
    ],
)
def test_f39_pairs_that_are_none(row, reason, detail):
    fault = fault_of(row)
    assert fault.reason == reason
    assert detail in fault.detail


@pytest.mark.parametrize(
    ("history", "reason", "detail"),
    [
        ([["a", "b", "c"]], "schema", "history[0] has 3 items"),
        ([["a", "b"], ["c", None]], "empty_assistant", "history[1][1] is null"),
        ([["", "b"]], "empty_user", "history[0][0] is empty"),
        ([["a", 4]], "schema", "history[0][1] is a number, not a text"),
        ([{"role": "user"}], "schema", "history[0] is an object, expected a question and an answer"),
        ({"a": "b"}, "schema", "history is an object, expected a list of pairs"),
        ("[['a', 'b']]", "schema", "history is a text that is not JSON"),
    ],
)
def test_histories_that_are_none(history, reason, detail):
    fault = fault_of({"query": "q", "response": "r", "history": history})
    assert fault.reason == reason
    assert detail in fault.detail


@pytest.mark.parametrize(
    ("row", "found", "flags"),
    [
        (
            {"user_input": "a", "reply": "b"},
            "no chat and no answer column; columns: reply, user_input",
            "user_input=query reply=response",
        ),
        (
            {"Question": "a", "Answer": "b"},
            "no chat and no answer column; columns: Answer, Question",
            "Question=query Answer=response",
        ),
        (
            {"问题": "a", "答案": "b"},
            "no chat and no answer column; columns: 答案, 问题",
            "问题=query 答案=response",
        ),
        (
            {"question": "a", "response_j": "b"},
            "no answer column; columns: question, response_j",
            "response_j=response",
        ),
        ({"id": 1, "output": "b"}, "no question column; columns: id, output", "COLUMN=query"),
        ({"system": "s", "response": "b"}, "no question column; columns: response, system", "COLUMN=query"),
        ({"toy_text": "a"}, "no chat and no answer column; columns: toy_text", "toy_text=text"),
        ({"dialog": turns("a", "b")}, "no chat and no answer column; columns: dialog", "dialog=messages"),
        ({"items": turns("a", "b")}, "no chat and no answer column; columns: items", "items=messages"),
        ({"data": [{"from": "human"}]}, "no chat and no answer column; columns: data", "data=messages"),
        ({"list": [{"a": 1}]}, "columns: list", "COLUMN=query COLUMN=response"),
        (
            {"question": "a", "city": "b", "poem": "c"},
            "no answer column; columns: city, poem, question",
            "COLUMN=response",
        ),
        ({"inputs": "a", "targets": "b", "task": "c"}, "no question column", "inputs=query"),
        ({"user_id": "u", "inputs": "a", "targets": "b"}, "no question column", "inputs=query"),
        (
            {"answer_type": "number", "question": "a", "their_answer": "b"},
            "no answer column",
            "their_answer=response",
        ),
        ({"ask": "a", "answer": "b"}, "no question column; columns: answer, ask", "ask=query"),
        ({"a question": "a", "it's reply": "b"}, "columns: a question, it's reply", None),
        (
            {"article": "a", "highlights": "b", "id": "c"},
            "columns: article",
            "article=query highlights=response",
        ),
    ],
)
def test_a_missing_column_names_those_found_and_the_flag(row, found, flags):
    fault = fault_of(row)
    assert fault.reason == "schema"
    assert found in fault.detail
    if flags is None:
        assert "--columns 'a question=query'" in fault.detail
    else:
        assert fault.detail.endswith(
            "name it with " + " ".join(f"--columns {flag}" for flag in flags.split())
        )


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({}, "the row is an empty object"),
        (
            said("user", "a"),
            "no chat and no answer column; columns: content, role; that is one turn: put the turns of a chat into one "
            'row, {"messages": [...]}',
        ),
        (
            {"from": "gpt", "value": "a"},
            "no chat and no answer column; columns: from, value; that is one turn: put the turns of a chat into one "
            'row, {"messages": [...]}',
        ),
    ],
)
def test_a_row_that_no_flag_makes_a_chat_is_told_so(row, detail):
    assert fault_of(row).detail == detail


@pytest.mark.parametrize(
    ("row", "end"),
    [
        (  # as OpenMathReasoning's
            {
                "expected_answer": "4",
                "problem_type": "t",
                "problem": "2+2?",
                "generated_solution": "2+2 is 4",
            },
            "name it with --columns generated_solution=response, or --columns expected_answer=response",
        ),
        (
            {"question": "2+2?", "answer": "4", "solution": "2+2 is 4"},
            "columns: solution, answer; choose with --columns solution=response or --columns answer=response",
        ),
        (  # as XSum's
            {"document": "long", "summary": "short", "id": "7"},
            "name it with --columns document=query --columns summary=response, or train on one column alone with "
            "--columns document=text",
        ),
        ({"title": "t", "content": "c", "author": "a", "url": "u"}, "name it with --columns content=text"),
        (  # as OpenAssistant's
            {"text": "a", "role": "prompter", "parent_id": None},
            'put the turns of a chat into one row, {"messages": [...]}, or train on each text alone with '
            "--columns text=text",
        ),
    ],
)
def test_what_else_could_be_meant_is_said(row, end):
    assert fault_of(row).detail.endswith(end)
    assert sample_of({"text": "a", "role": "prompter"}, {"text": "text"}).text == "a"


BY_TURNS = 'to_entries[] | {role: (if .key % 2 == 0 then "user" else "assistant" end), content: .value}]\''
PAIR = '{role: "user", content: .[0]}, {role: "assistant", content: .[1]}'
LIST = "FILE > rows.jsonl (where the file is one list: '.[] | ...')"


@pytest.mark.parametrize(
    ("row", "end"),
    [
        (  # as MOSS's and Glaive's: a system text is no question
            {"meta_instruction": "s", "user": "a", "bot": "b"},
            "name it with --columns user=query --columns meta_instruction=system --columns bot=response",
        ),
        ({"system": "s", "chat": "USER: a"}, "name it with --columns COLUMN=query --columns COLUMN=response"),
        (  # as COIG's
            {"q_instruction": "a", "the_question": "b", "the_answer": "c"},
            "--columns q_instruction=instruction --columns the_question=input --columns the_answer=response",
        ),
        (  # as Chinese-DeepSeek-R1-Distill's
            {"input": "a", "reasoning_content": "t", "content": "b", "repo_name": "x"},
            "name it with --columns content=response, or train on one column alone with --columns content=text",
        ),
        (
            {"instruction": "a", "generation": "b", "model_name": "m"},
            "name it with --columns generation=response",
        ),
        ({"prompt": "a", "code": "b", "source_file": "x"}, "name it with --columns code=response"),
        (
            {"original_text": "a", "equation": "x", "ans": "1"},
            "original_text=query --columns ans=response, or train on "
            "one column alone with --columns original_text=text",
        ),
        (
            {"prompt": "a", "pos_resp": "b", "neg_resp": "c"},
            "pos_resp=response, or --columns neg_resp=response",
        ),
        (
            {"context": "a", "target": "b", "date": "d"},
            "no question column; columns: context, date, target; name it with --columns context=query",
        ),
        (
            {"Question": "a", "response": "b"},
            "no question column; columns: Question, response; name it with --columns Question=query, or train on each "
            "answer alone with --columns response=text",
        ),
        (  # as Spider's
            {"question": "a", "query": "SELECT 1", "db_id": "d"},
            "name both with --columns question=query --columns query=response",
        ),
        ({"target": False, "trajectory": turns("a", "b")}, "name it with --columns trajectory=messages"),
        ({"talk": turns("a"), "answer": "b"}, "name it with --columns talk=query"),
        (
            {"question": "a", "human_answers": ["b"]},
            f"take one text out: jq -c '.response = .human_answers[0]' {LIST}",
        ),
        (
            {"question": "a", "answers": {"text": ["b"], "answer_start": [1]}},
            f"'.response = .answers.text[0]' {LIST}",
        ),
        (
            {"questions": [["a"]], "答案": ["b"]},
            f"'.query = .questions[0][0] | .response = .[\"答案\"][0]' {LIST}",
        ),
        (
            {
                "custom_id": "1",
                "method": "POST",
                "url": "/v1",
                "body": {"model": "m", "messages": turns("a", "b")},
            },
            f"its body may be the row: jq -c '.body' {LIST}",
        ),
        (
            {"translation": {"en": "a", "zh": "b"}},
            f"its translation may be the row: jq -c '.translation' {LIST}",
        ),
        (
            {"id": "1", "data": ["a", "b"]},
            f"where the texts of data are question and answer by turns: jq -c '.messages = [.data | {BY_TURNS} {LIST}",
        ),
        (
            {"question": "a", "answer": ["A"]},
            f"column answer is a list, not a text; take one out: jq -c '.answer = .answer[0]' {LIST}",
        ),
        (
            {"input": "a", "output": {"role": "assistant", "content": "b"}},
            f"'.output = .output.content' {LIST}",
        ),
        ({"question": "a", "answer": [1]}, "column answer is a list, not a text"),
        (  # as PaddleNLP's and ERNIE's: all turns, and not the first alone
            {"src": ["a", "c"], "tgt": ["b", "d"]},
            f"'.query = .src[0] | .response = .tgt[0]' {LIST}, or all of them where they are the turns of a chat: "
            f"jq -c '.messages = [[.src, .tgt] | transpose[] | {PAIR}]' {LIST}",
        ),
        (
            {"interactions": [["a", "b"], ["c", "d"]]},
            f"where the pairs of interactions are question and answer: jq -c '.messages = [.interactions[] | {PAIR}]' "
            + LIST,
        ),
        (  # as LIMA's
            {"conversations": ["a", "b"]},
            "where the texts are question and answer by turns: jq -c '.conversations = [.conversations | "
            f"{BY_TURNS} {LIST}",
        ),
        (  # as verl's
            {
                "data_source": "x",
                "prompt": turns("a"),
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "4"},
            },
            f"'.response = .reward_model.ground_truth' {LIST}",
        ),
        (
            {
                "prompt": turns("a"),
                "reward_model": {"ground_truth": "4"},
                "extra_info": {"index": 1, "answer": "2+2 is 4"},
            },
            f"'.response = .extra_info.answer' {LIST}",
        ),
        (  # as PRM800K's
            {"labeler": "u", "question": {"problem": "a", "ground_truth_answer": "4"}},
            f"'.response = .question.ground_truth_answer' {LIST}",
        ),
        (
            {"question": {"problem": "a", "ground_truth_answer": "4"}, "answer": "4"},
            f"column question is an object, not a text; take one out: jq -c '.question = .question.problem' {LIST}",
        ),
        (  # as Gemini's
            {
                "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
                "contents": [{"role": "user", "parts": [{"text": "a"}]}],
            },
            f"take one text out: jq -c '.system = .systemInstruction.parts[0].text' {LIST}; "
            "name it with --columns contents=messages",
        ),
        (
            {"question": "a", "answer": 4},
            f"column answer is a number, not a text; write it as one: jq -c '.answer |= tostring' {LIST}",
        ),
        (
            {"label": "1", "context": "a", "response": "b"},
            "--columns context=query, or train on each answer alone with --columns response=text",
        ),
        (  # as the hotlines' of towns
            {"工单内容": "a", "处理结果": "b", "承办单位": "c"},
            "--columns 工单内容=query --columns 处理结果=response, or train on one column alone with "
            "--columns 工单内容=text",
        ),
        ({"sql_prompt": "a", "sql": "b", "domain": "c"}, "--columns sql_prompt=query --columns sql=response"),
        ({"utterances": [{"speaker": "USER", "text": "a"}]}, "name it with --columns utterances=messages"),
        (
            {"messages": turns("a"), "reference_answer": "b"},
            "no answer to learn; where column reference_answer holds "
            "it, type --columns messages=query --columns reference_answer=response",
        ),
        (
            {"messages": turns("a"), "response": "b"},
            "where column response holds it, type --columns messages=query",
        ),
        ({"messages": turns("a"), "id": "b"}, "the conversation ends with a user turn: no answer to learn"),
    ],
)
def test_what_would_make_a_sample_of_a_row_is_said(row, end):
    assert fault_of(row).detail.endswith(end)


@pytest.mark.parametrize(
    ("row", "columns", "messages"),
    [
        (
            {"messages": turns("a"), "answer": "b"},
            {"messages": "query", "answer": "response"},
            turns("a", "b"),
        ),
        ({"context": "a", "response": "b"}, {"context": "query"}, turns("a", "b")),
        ({"text": "a", "summary": "b"}, {"text": "query", "summary": "response"}, turns("a", "b")),
        ({"text": "a", "label": "b"}, {"text": "query", "label": "response"}, turns("a", "b")),
        ({"text": "a", "code": "b"}, {"text": "query", "code": "response"}, turns("a", "b")),
        ({"dialog": turns("a"), "response": "b"}, {"dialog": "query"}, turns("a", "b")),
        ({"context": turns("a"), "response": "b"}, {"context": "query"}, turns("a", "b")),
        ({"question": "a", "query": "b"}, {"question": "query", "query": "response"}, turns("a", "b")),
    ],
)
def test_a_pair_under_other_names_is_not_learnt_as_one_text(row, columns, messages):
    assert all(f"--columns {theirs}={ours}" in fault_of(row).detail for theirs, ours in columns.items())
    assert sample_of(row, columns).messages == messages


@pytest.mark.parametrize(
    ("row", "alone"),
    [
        ({"context": "a", "response": "b"}, "response"),
        ({"text": "a", "summary": "b"}, "text"),
        ({"text": "a", "label": ["b"]}, "text"),
    ],
)
def test_one_of_a_pair_is_learnt_alone_where_that_is_said(row, alone):
    assert f"with --columns {alone}=text" in fault_of(row).detail
    assert sample_of(row, {alone: "text"}).text == row[alone]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "t", "label": 1},
        {"text": "t", "label": [[0, 5, "PER"]]},
        {"text": "t", "title": "a", "url": "u", "answer_id": "7"},
        {"response": "t", "source": "web", "category": "news", "score": 1},
    ],
)
def test_what_is_about_a_text_is_no_answer(row):
    assert sample_of(row).text == "t"


@pytest.mark.parametrize(
    ("more", "lost"),
    [
        ({"A": "one", "B": "two", "answer": "B"}, "B"),
        ({"options": ["one", "two"], "answer": "B"}, "options"),
        ({"choices": {"label": ["A", "B"], "text": ["one", "two"]}, "answer": " B"}, "choices"),
    ],
)
def test_choices_that_would_be_lost_are_refused(more, lost):
    fault = fault_of({"question": "q", **more})
    assert fault.reason == "columns"
    assert fault.detail == (
        f"column answer names a choice, and column {lost} would be lost: write the choices into the question, "
        "or leave them out with --columns answer=response"
    )
    assert sample_of({"question": "q", **more}, {"answer": "response"}).columns == ("question", "response")
    assert sample_of({"question": "q", "A": "one", "tags": ["a", "b"], "answer": "one"}).messages


@pytest.mark.parametrize(
    ("row", "lost", "columns"),
    [
        (  # as CMMLU's
            {"Question": "q", "A": "one", "B": "two", "Answer": "B"},
            "Answer names a choice, and column B",
            {"Question": "query", "Answer": "response"},
        ),
        (  # as ARC's
            {"question": "q", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"},
            "answerKey names a choice, and column choices",
            {"answerKey": "response"},
        ),
        ({"question": "q", "choices": ["x", "y"], "their_answer": "1"}, "their_answer names", None),
    ],
)
def test_flags_that_would_lose_choices_say_so(row, lost, columns):
    detail = fault_of(row).detail
    assert lost in detail
    assert "write the choices into the question, or leave them out with --columns" in detail
    if columns:
        assert detail.endswith(" ".join(f"--columns {theirs}={ours}" for theirs, ours in columns.items()))
        assert sample_of(row, columns).messages == turns("q", "B")


def test_a_number_of_a_choice_is_told_from_an_answer_among_them():
    assert "names a choice" in fault_of({"question": "q", "choices": ["x", "y"], "answer": "1"}).detail
    for options in (["4", "1"], ["x"], ["x", "y"]):
        row = {"question": "q", "options": options, "answer": "4"}
        assert sample_of(row).messages == turns("q", "4")


@pytest.mark.parametrize("name", ["question", "problem", "text", "document", "正文"])
def test_what_an_instruction_is_about_is_not_lost(name):
    row = {"instruction": "Sum it up.", name: "A long text.", "output": "b"}
    fault = fault_of(row)
    assert fault.reason == "columns"
    assert fault.detail == (
        f"column {name} beside column instruction may be its input, and would be lost: join them with --columns "
        f"{name}=input, or leave it out with --columns instruction=query"
    )
    assert sample_of(row, {name: "input"}).messages == turns("Sum it up.\nA long text.", "b")
    assert sample_of(row, {"instruction": "query"}).messages == turns("Sum it up.", "b")
    # one that repeats the instruction, is empty, or stands beside an input is none
    for other in (
        {name: "Sum it up. Answer: b"},
        {name: "Sum it up."},
        {name: " "},
        {"input": "A long text."},
    ):
        assert sample_of({**row, **other}).messages[0]["content"].startswith("Sum it up.")


GPT = {"from": "gpt", "value": "b"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"chosen": "response"}),
        ({"messages": turns("a", "b"), "rejected_response": "c"}, {"messages": "messages"}),
        ({"query": "a", "response": "b", "rejected_response": "c"}, {"response": "response"}),
        (
            {
                "prompt": "a",
                "messages": turns("a", "c"),
                "chosen": turns("a", "b"),
                "rejected": turns("a", "c"),
            },
            {"chosen": "messages"},
        ),
        (
            {"prompt": turns("a"), "chosen": turns("a", "b")[1:], "rejected": turns("a", "c")[1:]},
            {"chosen": "response"},
        ),
        (  # as LLaMA-Factory's
            {"conversations": [{"from": "human", "value": "a"}], "chosen": GPT, "rejected": GPT},
            {"conversations": "query", "chosen": "response"},
        ),
    ],
)
def test_preferred_answers_are_learnt_with_the_flags_that_are_said(row, columns):
    flags = " ".join(f"--columns {theirs}={ours}" for theirs, ours in columns.items())
    assert fault_of(row).detail.endswith(f"; learn the preferred answers alone with {flags}")
    assert sample_of(row, columns).messages == turns("a", "b")


@pytest.mark.parametrize("row", [{"chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": [GPT]}])
def test_no_flag_is_said_where_none_is_enough(row):
    assert fault_of(row).detail == "column chosen: preference data has no answer to be fine-tuned on"


def test_a_column_of_thoughts_beside_another_one_is_refused():
    row = {"messages": [*turns("a"), said("assistant", "b", thinking="t")], "cot": "other"}
    fault = fault_of(row, {"cot": "reasoning_content"})
    assert (fault.reason, fault.detail) == (
        "columns",
        "column cot: two thoughts before one answer say different things",
    )


def test_many_columns_and_long_names_are_cut():
    fault = fault_of({f"column{number:03}" + "x" * 100: 1 for number in range(50)})
    assert "and 38 more" in fault.detail
    assert len(fault.detail) < 800


@pytest.mark.parametrize(
    "row",
    [
        {"query": "SECRET", "response": 4},
        {"messages": [said("user", "SECRET"), said("SECRET " * 9, "SECRET")]},
        {"messages": [said("user", "SECRET"), said("tool_call", "SECRET")]},
        {"messages": [said("user", [{"type": "SECRET " * 9, "x": "SECRET"}])]},
        {"query": "SECRET", "response": "SECRET", "history": "SECRET"},
        {"a": "SECRET", "b": ["SECRET"]},
    ],
)
def test_the_text_of_a_row_is_in_no_detail(row):
    assert "SECRET" not in fault_of(row).detail


def test_equal_rows_have_one_sha1_and_deep_ones_have_one_too():
    assert fault_of({"a": 1}).sha1 == fault_of({"a": 1}).sha1 != fault_of({"a": 2}).sha1
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert fault_of({"x": deep}).reason == "schema"
    assert fault_of({"query": "q", "response": "r", "images": deep}).reason == "nesting"
    while deep:
        deep = deep.pop()
