"""Locks of folders and drafts where a file system has none, an owner is ending, or another run is writing."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from swiftlet.errors import UsageError
from swiftlet.train import lock
from swiftlet.train.lock import drafting, locked, remove_abandoned


def held(path, owner):
    """Open a lock's file that names `owner`, and lock it as that process would have."""
    path.write_text(json.dumps(owner), encoding="utf-8")
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@pytest.fixture
def ended_owner():
    """What a process of this machine wrote that has ended since."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return {**lock._owner(), "pid": process.pid}


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capfd):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    (tmp_path / ".tmp-5-abc").mkdir()
    with locked(tmp_path):
        assert not (tmp_path / ".tmp-5-abc").exists()
        with drafting(tmp_path / ".tmp-6-def"):
            assert json.loads((tmp_path / ".lock").read_text("utf-8"))["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
    said = f"the file system of {tmp_path} has no locks: a second run in it would not be noticed"
    assert capfd.readouterr().err.count(said) == 1


def test_a_draft_that_is_being_written_stays_and_one_that_was_left_goes(tmp_path):
    (tmp_path / ".tmp-left").mkdir()
    (tmp_path / ".tmp-file").touch()
    (tmp_path / "checkpoint-5").mkdir()
    with drafting(tmp_path / ".tmp-mine"):
        remove_abandoned(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-mine", "checkpoint-5"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_an_owner_that_has_ended_is_waited_for(tmp_path, ended_owner):
    descriptor = held(tmp_path / ".lock", ended_owner)
    timer = threading.Timer(0.3, os.close, [descriptor])
    timer.start()
    with locked(tmp_path):
        assert not timer.is_alive()
        assert json.loads((tmp_path / ".lock").read_text("utf-8"))["pid"] == os.getpid()


def test_an_owner_that_has_ended_is_not_waited_for_forever(tmp_path, ended_owner, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_S", 0.2)
    descriptor = held(tmp_path / ".lock", ended_owner)
    with (
        pytest.raises(UsageError, match=f"process {ended_owner['pid']} on .* is already running in"),
        locked(tmp_path),
    ):
        pass
    os.close(descriptor)


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"boot_id": "of yesterday"}])
def test_an_owner_that_this_machine_cannot_see_is_taken_for_running(tmp_path, ended_owner, elsewhere):
    began = time.monotonic()
    descriptor = held(tmp_path / ".lock", ended_owner | elsewhere)
    with pytest.raises(UsageError, match="is already running in"), locked(tmp_path):
        pass
    os.close(descriptor)
    assert time.monotonic() - began < lock.PATIENCE_S / 2


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_lock_that_names_nobody_is_of_another_process(tmp_path, text):
    path = tmp_path / ".lock"
    descriptor = held(path, {})
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="another process is already running in"), locked(tmp_path):
        pass
    os.close(descriptor)
