"""Rows of a dataset: questions, histories, results in order, on one or more processes."""

import json
from pathlib import Path

import pytest

from swiftlet.errors import SaveError
from swiftlet.inference.answers import ResultFile, answer_rows, compared, row_of
from swiftlet.inference.generate import Generator, Settings

CONVERSATION = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "world"},
    {"role": "user", "content": "what is your name"},
    {"role": "assistant", "content": "I am tiny"},
]


def rows(tokenizer):
    def encode(messages):
        return tokenizer(" ".join(message["content"] for message in messages))["input_ids"]

    short = [{"role": "user", "content": "hello"}]
    long = [{"role": "user", "content": "hello " * 70}]
    return [row_of(messages, encode) for messages in (CONVERSATION, short, long)]


def engine(model, tokenizer):
    settings = Settings(max_new_tokens=4, do_sample=False)
    return Generator(
        model=model,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        pad_id=tokenizer.pad_token_id,
        stop_token_ids=[3],
        settings=settings,
        context_length=64,
    )


def test_the_last_turn_is_the_question(tiny_tokenizer):
    row = rows(tiny_tokenizer)[0]
    assert (row.query, row.label, row.system) == ("what is your name", "I am tiny", "s")
    assert row.history == [["hello", "world"]]
    assert tiny_tokenizer.decode(row.prompt_ids).endswith("name")


def test_calls_of_tools_are_no_turns():
    def turn(question, answer):
        call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
        result = {"role": "tool", "content": "5"}
        return [{"role": "user", "content": question}, call, result, {"role": "assistant", "content": answer}]

    row = row_of([*turn("2 + 3?", "It is 5."), *turn("and 1 + 4?", "5 too.")], len)
    assert (row.query, row.label) == ("and 1 + 4?", "5 too.")
    assert row.history == [["2 + 3?", "It is 5."]]
    assert row.prompt_ids == 7  # calls and results of both turns are in the prompt


def test_a_prompt_without_room_is_reported_not_dropped(tiny_qwen2, tiny_tokenizer):
    results = dict(answer_rows(engine(tiny_qwen2, tiny_tokenizer), rows(tiny_tokenizer), batch_tokens=1000))
    assert sorted(results) == [0, 1, 2]
    assert set(results[0]) == {"response", "query", "label", "history", "system"}
    assert results[2]["response"] is None
    assert "leaves no room" in results[2]["error"]


def test_processes_share_the_rows(tiny_qwen2, tiny_tokenizer):
    generator = engine(tiny_qwen2, tiny_tokenizer)
    alone = dict(answer_rows(generator, rows(tiny_tokenizer), batch_tokens=64))
    shared = {}
    for rank in range(2):
        part = dict(answer_rows(generator, rows(tiny_tokenizer), batch_tokens=64, rank=rank, world_size=2))
        assert not shared.keys() & part.keys()
        shared |= part
    assert shared == alone


def test_a_disk_that_takes_no_more_keeps_the_answers_so_far(tmp_path, monkeypatch):
    file = ResultFile(tmp_path / "now.jsonl")
    file.add(0, {"response": "a"})

    def full(self, text, encoding):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        SaveError, match=r"now\.jsonl could not be written: No space left.*now\.partial\.jsonl"
    ):
        file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["now.partial.jsonl"]
    with pytest.raises(SaveError, match="--result_dir FOLDER"):
        ResultFile(tmp_path / "now.partial.jsonl" / "x.jsonl").add(0, {"response": "a"})


def test_results_are_kept_as_they_come_and_ordered_at_the_end(tmp_path):
    file = ResultFile(tmp_path / "infer_result" / "now.jsonl")
    file.add(1, {"response": "乙"})
    file.add(0, {"response": "甲"})
    draft = tmp_path / "infer_result" / "now.partial.jsonl"
    assert [json.loads(line)["row"] for line in draft.read_text("utf-8").splitlines()] == [1, 0]
    assert file.close() == [{"response": "甲"}, {"response": "乙"}]
    assert not draft.exists()
    assert file.path.read_text("utf-8") == '{"response": "甲"}\n{"response": "乙"}\n'


def test_results_of_a_run_that_ends_early_are_named(tmp_path, capsys):
    file = ResultFile(tmp_path / "now.jsonl")
    with pytest.raises(KeyboardInterrupt), file.kept():
        file.add(0, {"response": "a"})
        raise KeyboardInterrupt
    assert f"1 answers so far are in {tmp_path / 'now.partial.jsonl'}" in capsys.readouterr().err
    with file.kept():
        file.add(1, {"response": "b"})
    assert capsys.readouterr().err == ""


def test_runs_of_the_same_second_share_no_results(tmp_path):
    first, second, idle = (ResultFile(tmp_path / "now.jsonl") for _ in range(3))
    first.add(0, {"response": "a"})
    second.add(0, {"response": "b"})
    idle.discard()  # it has no answer, and so no draft
    assert first.close() == [{"response": "a"}]
    assert second.close() == [{"response": "b"}]
    third = ResultFile(tmp_path / "now.jsonl")
    third.results[0] = {"response": "c"}
    third.close()
    texts = {path.name: json.loads(path.read_text("utf-8"))["response"] for path in tmp_path.iterdir()}
    assert texts == {"now.jsonl": "a", "now-1.jsonl": "b", "now-2.jsonl": "c"}


@pytest.mark.parametrize(
    ("label", "expected"),
    [("yes", "yes"), (None, "yes"), ("<think>\nso\n</think>\n\nyes", "<think>so</think>yes")],
)
def test_an_answer_is_compared_without_a_thought_where_its_label_has_none(label, expected):
    result = {"response": "<think>so</think>yes", "answer": "yes", "label": label}
    assert compared(result, "</think>") == expected
    assert compared({"response": "yes", "label": label}, "") == "yes"
    assert compared({"response": None, "label": label}, "</think>") == ""
