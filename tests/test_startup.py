"""Processes that import nothing from the working folder, and loading without the collector of cycles."""

import gc
import subprocess
import weakref

import pytest

from swiftlet.startup import freed_afterwards, module_command, without_collector


class Node:
    """An object that refers to itself."""

    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_nothing_is_collected_inside_and_garbage_is_freed_at_the_end():
    with without_collector():
        assert not gc.isenabled()
        garbage = weakref.ref(Node())
        kept = Node()
        assert garbage() is not None
    assert gc.isenabled()
    assert garbage() is None
    assert gc.get_freeze_count() > 0
    assert kept.me is kept


def test_an_error_inside_leaves_the_collector_on():
    with pytest.raises(ValueError, match="bad import"), without_collector():
        raise ValueError("bad import")
    assert gc.isenabled()


def test_a_process_runs_nothing_that_lies_in_the_working_folder(tmp_path, monkeypatch):
    for name in ("json", "queue", "runpy", "swiftlet"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('ran what was there')")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [*module_command("swiftlet.cli"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("swiftlet ")


def test_what_was_kept_from_the_collector_is_freed_after_a_run():
    with freed_afterwards():
        with without_collector():
            model = Node()
        found = weakref.ref(model)
        del model
        gc.collect()
        assert found() is not None
    assert found() is None
    assert gc.get_freeze_count() == 0


def test_what_was_there_before_a_run_is_not_walked_in_it():
    with freed_afterwards():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
