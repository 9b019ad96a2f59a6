"""Files of logs as people have them: packed, in other encodings, no text at all, huge, cut off."""

from __future__ import annotations

import gzip
import os

import pytest
from explaining import TABLES

from swiftlet.doctor.explain import explain
from swiftlet.doctor.log_files import LARGEST_BYTES, read_logs
from swiftlet.errors import UsageError

TEXT = "first\nOSError: [Errno 28] No space left on device\n"


def read(path, content):
    path.write_bytes(content)
    return read_logs([str(path)])


def cause_of(log):
    first = explain(log.lines, TABLES).first
    return first.cause.id if first else "unknown"


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(TEXT.encode(), mtime=0),  # names of tests must not change with the time
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-be").join([b"\xfe\xff", b""]),
        TEXT.encode("utf-8-sig"),
        ("错误\n" + TEXT).encode("gbk"),
        b"\0" * 5000 + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        gzip.compress(TEXT.encode("utf-16"), mtime=0),
    ],
)
def test_text_is_read_however_it_is_kept(tmp_path, content):
    log = read(tmp_path / "a.log", content)
    assert cause_of(log) == "system.disk" and not log.notes


def test_what_is_no_text_is_said_so(tmp_path):
    log = read(tmp_path / "a.bin", bytes(range(256)) * 40)
    assert not log.lines and log.notes == [f"{tmp_path / 'a.bin'} is no text file and was left out"]


def test_a_gzip_file_that_is_cut_off_is_read_up_to_there(tmp_path):
    whole = gzip.compress(os.urandom(60_000).hex().encode() + b"\n", mtime=0)
    head = gzip.compress(TEXT.encode())
    log = read(tmp_path / "a.gz", head + whole[: len(whole) // 2])
    assert cause_of(log) == "system.disk" and "cut off or damaged" in log.notes[0]
    assert "cut off or damaged" in read(tmp_path / "b.gz", gzip.compress(b"a" * 99)[:12]).notes[0]


def test_between_the_ends_of_a_huge_file_errors_are_found_with_their_line(tmp_path):
    step = (b"step" * 50 + b"\n") * 1000
    blocks = LARGEST_BYTES // len(step)
    log = read(
        tmp_path / "a.log", step * blocks + b"KeyError: 'ASCEND_HOME_PATH'\n" + step * blocks + b"end\n"
    )
    found = explain(log.lines, TABLES)
    assert found.first.cause.id == "env.home_path" and found.first.line.number == blocks * 1000 + 1
    assert log.lines[-1].number == 2 * blocks * 1000 + 2
    assert "only those that look like an error" in log.notes[0]


def test_between_the_ends_what_always_repeats_crowds_out_no_other_error(tmp_path):
    block = (b"a retry failed after 12 ms, " + b"#" * 900 + b"\n") * (LARGEST_BYTES // 900)
    found = explain(
        read(tmp_path / "a.log", block * 2 + b"KeyError: 'ASCEND_HOME_PATH'\n" + block * 2).lines, TABLES
    )
    assert found.first.cause.id == "env.home_path"


def test_short_lines_are_cut_earlier_as_each_costs_time(tmp_path):
    log = read(tmp_path / "a.log", b"".join(b"%d error\n" % at for at in range(LARGEST_BYTES // 20)))
    assert "lines the first " in log.notes[0]


def test_a_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is a named pipe") as refused:
        read_logs([str(tmp_path / "pipe")])
    assert "cat " in str(refused.value.hint)


def test_control_codes_of_a_terminal_are_left_out(tmp_path):
    log = read(tmp_path / "a.log", b"\x1b[2K\x1b[31mToo many open files\x1b[0m\x1b[K\n")
    assert log.lines[0].text == "Too many open files"
