"""Rows to tokens: labels, lengths, truncation, refusals, and processes that keep the order and can be ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_template import make_template, row

from swiftlet.data.encode import CHUNK_BYTES, CHUNK_ROWS, Chunk, Encoder, content_hash, cut_chunks
from swiftlet.data.formats import to_sample
from swiftlet.data.rows import IGNORE_INDEX, BadRow, Origin, Record
from swiftlet.data.store import KEPT, LEFT_OUT, pack, unpack
from swiftlet.data.workers import map_in_order
from swiftlet.errors import SwiftletError


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("tokenizer"))


def records(rows, path="a.jsonl"):
    return [Record(one, Origin(path, number, 100 * number)) for number, one in enumerate(rows, 1)]


def encode(template, rows, *, max_length=0, truncation="delete", columns=None):
    return Encoder(template, columns or {}, max_length, truncation)(Chunk(0, records(rows)))


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans())))
def test_ids_and_labels_share_one_array(pairs):
    ids = np.array([token for token, _ in pairs], np.int32)
    labels = np.array([token if is_trained else IGNORE_INDEX for token, is_trained in pairs], np.int32)
    joined = unpack(pack(ids, labels))
    assert joined.input_ids.tolist() == ids.tolist()
    assert joined.labels.tolist() == labels.tolist()
    assert joined.input_ids.dtype == joined.labels.dtype == np.int32


@pytest.mark.parametrize(("ids", "labels"), [([1, 2], [-100, 3]), ([-1, 2], [-100, 2])])
def test_labels_that_are_not_their_token_are_refused(ids, labels):
    with pytest.raises(ValueError, match="a label must be its own token"):
        pack(np.array(ids, np.int32), np.array(labels, np.int32))


def test_a_chunk_is_what_the_template_makes_of_its_rows(template):
    rows = [row(number, 3 + number) for number in range(5)]
    chunk = encode(template, rows)
    for number, record in enumerate(records(rows)):
        expected = template.encode(to_sample(record, {}))
        entry = chunk.rows[number]
        start = int(entry["offset"])
        found = unpack(chunk.tokens[start : start + int(entry["length"])])
        assert found.input_ids.tolist() == expected.input_ids
        assert found.labels.tolist() == expected.labels
        assert entry["num_labels"] == sum(label != IGNORE_INDEX for label in expected.labels)
        assert entry["line"] == number + 1
        assert entry["status"] == KEPT
    assert chunk.files == ["a.jsonl"]
    assert len(chunk.tokens) == chunk.rows["length"].sum()


def test_f41_a_row_that_is_too_long_is_left_out_and_is_not_bad(template):
    chunk = encode(template, [row(1), row(2, 60)], max_length=20)
    assert chunk.rows["status"].tolist() == [KEPT, LEFT_OUT]
    (one,) = chunk.left_out
    assert (one.reason, one.length, one.is_bad) == ("over_length", 66, False)
    assert one.detail == "66 tokens, longer than 20"


def test_f41_truncation_keeps_the_end_and_the_beginning_mark(template):
    chunk = encode(template, [row(2, 60)], max_length=20, truncation="truncation_left")
    whole = template.encode(to_sample(records([row(2, 60)])[0], {}))
    ids, labels = unpack(chunk.tokens)
    assert ids.tolist() == [whole.input_ids[0], *whole.input_ids[-19:]]
    assert labels.tolist() == [IGNORE_INDEX, *whole.labels[-19:]]
    assert chunk.rows["num_labels"].tolist() == [19]
    assert chunk.notes["truncated"] == 1


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=5),
    st.integers(-3, 3),
    st.sampled_from(["delete", "truncation_left"]),
)
def test_at_the_border_of_max_length_no_token_is_lost_and_every_row_is_counted(
    template, turns, over, truncation
):
    messages = [
        one
        for size, is_trained in [*turns, (2, True)]
        for one in (
            {"role": "user", "content": "hello " * size},
            {"role": "assistant", "content": "yes " * size, "loss": is_trained},
        )
    ]
    whole = template.encode(to_sample(records([{"messages": messages}])[0], {}))
    limit = len(whole.input_ids) + over
    chunk = encode(template, [{"messages": messages}], max_length=limit, truncation=truncation)
    if over < 0 and truncation == "delete":
        assert [(one.reason, one.length) for one in chunk.left_out] == [("over_length", limit - over)]
        return
    ids, labels = unpack(chunk.tokens)
    expected = whole.input_ids if over >= 0 else whole.input_ids[:1] + whole.input_ids[1 - limit :]
    assert (ids.tolist(), chunk.left_out) == (expected, [])
    trained = whole.labels if over >= 0 else [IGNORE_INDEX, *whole.labels[1 - limit :]]
    assert labels.tolist() == trained
    assert chunk.rows["num_labels"].tolist() == [sum(label != IGNORE_INDEX for label in trained)]


def test_f41_a_row_with_nothing_to_learn_once_it_is_cut_is_counted_and_not_trained_on(template):
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "hello " * 40},
        {"role": "assistant", "content": "no", "loss": False},
    ]
    chunk = encode(template, [{"messages": messages}], max_length=20, truncation="truncation_left")
    (one,) = chunk.left_out
    assert (one.reason, one.is_bad, one.detail) == (
        "no_label_tokens",
        False,
        "none of the last 20 of its 50 tokens is trained on",
    )
    assert chunk.rows["status"].tolist() == [LEFT_OUT]
    assert len(chunk.tokens) == 0


def test_a_row_that_trains_on_nothing_is_bad(template):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes", "loss": False}]
    (one,) = encode(template, [{"messages": messages}]).left_out
    assert (one.reason, one.is_bad) == ("no_label_tokens", True)


def test_the_first_token_of_a_text_is_no_label(template):
    chunk = encode(template, [{"text": "hello yes no"}])
    ids, labels = unpack(chunk.tokens)
    assert labels[0] == IGNORE_INDEX
    assert labels[1:].tolist() == ids[1:].tolist()
    assert chunk.rows["num_labels"].tolist() == [len(ids) - 1]


def test_a_row_that_the_template_refuses_is_bad_and_its_text_is_not_told(tmp_path):
    chat = "{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
    chat += "{% for m in messages %}<{{ m.role }}> {{ m.content }}<eos>{% endfor %}"
    template = make_template(tmp_path, chat)
    turns = [{"role": role, "content": "private"} for role in ("user", "assistant", "user", "assistant")]
    chunk = encode(template, [{"messages": turns}, row(1)])
    (one,) = chunk.left_out
    assert one.reason == "template"
    assert "one turn only" in one.detail
    assert "private" not in one.to_json()
    assert chunk.rows["status"].tolist() == [LEFT_OUT, KEPT]


def test_bad_rows_of_the_source_and_of_the_shape_are_no_rows_of_the_store(template):
    bad = BadRow(Origin("a.jsonl", 9, 700), "json", "not JSON", "ab" * 20)
    chunk = Encoder(template, {}, 0, "delete")(Chunk(0, [*records([{"colour": "red"}, row(1)]), bad]))
    assert chunk.num_records == 3
    assert len(chunk.rows) == 1
    assert [one.reason for one in chunk.left_out] == ["schema", "json"]
    assert json.loads(chunk.left_out[1].to_json()) == {
        "file": "a.jsonl",
        "line": 9,
        "byte": 700,
        "reason": "json",
        "detail": "not JSON",
        "sha1": "ab" * 20,
    }


def test_columns_reach_the_rows(template):
    chunk = encode(
        template, [{"frage": "hello", "antwort": "yes"}], columns={"frage": "query", "antwort": "response"}
    )
    assert chunk.rows["status"].tolist() == [KEPT]


def test_equal_conversations_have_equal_hashes_wherever_they_stand(template):
    chunk = encode(template, [row(1), row(2), row(1)])
    content = chunk.rows["content"].tolist()
    assert content[0] == content[2] != content[1]
    assert chunk.rows["tokens"][0].tolist() == chunk.rows["tokens"][2].tolist()
    lone = to_sample(records([{"text": "half \\ud800 a pair"}])[0], {})
    assert len(content_hash(lone)) == 16


@given(st.integers(0, 3 * CHUNK_ROWS), st.sampled_from([10, CHUNK_BYTES // 4]))
def test_chunks_hold_every_row_in_order_and_stay_small(num_rows, num_bytes):
    rows = [Record({}, Origin("a", line, line * num_bytes)) for line in range(num_rows)]
    chunks = list(cut_chunks(3, rows))
    assert [one for chunk in chunks for one in chunk.records] == rows
    assert all(chunk.dataset == 3 and 0 < len(chunk.records) <= CHUNK_ROWS for chunk in chunks)
    assert all(
        chunk.records[-1].origin.byte - chunk.records[0].origin.byte <= CHUNK_BYTES for chunk in chunks
    )


def slow_square(number):
    """Later items are ready sooner."""
    time.sleep(0.02 if number % 5 == 0 else 0.0)
    return number * number


def die(number):
    """End the process at item 3."""
    if number == 3:
        os._exit(7)
    return number


def own_pid(number):
    """Return the process that ran this."""
    return os.getpid()


@pytest.mark.parametrize("num_proc", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(num_proc):
    assert list(map_in_order(slow_square, range(40), num_proc)) == [number * number for number in range(40)]


def test_one_process_is_this_one():
    assert set(map_in_order(own_pid, range(3), 1)) == {os.getpid()}
    assert os.getpid() not in set(map_in_order(own_pid, range(3), 2))


FROZEN = """
import gc
from swiftlet.data.workers import map_in_order

def num_frozen(number):
    return gc.get_freeze_count()

counts = list(map_in_order(num_frozen, range(3), 2))
assert min(counts) > 1000, counts
assert gc.get_freeze_count() == 0
"""


def test_what_processes_share_is_left_alone_by_the_collector():
    """In an interpreter of its own: processes are forked only where no other thread runs."""
    done = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_large_items_and_results_do_not_lock_up():
    items = [b"x" * 2_000_000] * 6
    assert [len(result) for result in map_in_order(bytes.upper, items, 2)] == [2_000_000] * 6


def test_only_a_bounded_number_of_items_is_read_ahead():
    read = []

    def items():
        for number in range(500):
            read.append(number)
            yield number

    results = map_in_order(slow_square, items(), 2)
    next(results)
    assert len(read) < 40
    results.close()


def test_a_process_that_dies_is_said_and_no_other_stays():
    with pytest.raises(SwiftletError, match=r"a process that tokenises died \(exit code 7\)") as caught:
        list(map_in_order(die, range(10), 2))
    assert "--preprocess_num_proc 1" in caught.value.hint
    assert not multiprocessing.active_children()


def test_a_process_killed_for_memory_is_told_from_a_crash():
    victims = map_in_order(own_pid, range(100), 2)
    os.kill(next(victims), signal.SIGKILL)
    with pytest.raises(SwiftletError, match=r"died \(signal 9\)"):
        list(victims)


def test_beside_another_thread_processes_are_started_afresh(template):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    encoder = Encoder(template, {}, 0, "delete")
    chunks = [Chunk(0, records([row(number)])) for number in range(4)]
    spawned = [chunk.tokens.tolist() for chunk in map_in_order(encoder, chunks, 2)]
    stop.set()
    thread.join()
    assert spawned == [encoder(chunk).tokens.tolist() for chunk in chunks]


ORPHANS = """
import os, sys, time
from swiftlet.data.workers import map_in_order
def work(number):
    time.sleep(0.05)
    return os.getpid()
if __name__ == "__main__":
    seen = set()
    for pid in map_in_order(work, range(10**6), 2):
        if pid not in seen:
            seen.add(pid)
            print(pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(number):
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(number)
    try:
        parent.wait(10)
    finally:
        parent.kill()
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_alive(pid)]


def is_alive(pid):
    """Return whether a process runs; one that ended and waits for its parent does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("is_text", [True, False])
def test_arguments_nested_deeply_are_kept_or_left_out(tmp_path, is_text):
    chat = "{% for m in messages %}{{ m.role }} {{ m.content }} {{ m.tool_calls | default('') }}<eos>{% endfor %}"
    deep_template = make_template(tmp_path, chat)
    for depth in [*range(850, 1000), 3000]:
        arguments = '{"x": ' + "[" * depth + "]" * depth + "}"
        if not is_text:
            arguments = []
            for _ in range(depth):
                arguments = [arguments]
        call = {"role": "assistant", "content": "yes", "tool_calls": [{"name": "f", "arguments": arguments}]}
        made = encode(deep_template, [{"messages": [{"role": "user", "content": "hello"}, call]}])
        assert len(made.left_out) + int((made.rows["status"] == KEPT).sum()) == 1
