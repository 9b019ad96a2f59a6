"""How many processors a process may use: a container with a quota sees all of its host's."""

import pytest

from swiftlet import launch
from swiftlet.device import processors
from swiftlet.device.processors import quota_of_container, usable_processors
from swiftlet.device.settings import environment
from swiftlet.launch import Shape


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Writes the files of one that sees 64 processors; `older` are those of the first version of cgroups."""
    older = tmp_path / "cpu.cfs_quota_us", tmp_path / "cpu.cfs_period_us"
    monkeypatch.setattr(processors, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(processors, "QUOTA_BEFORE", older)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))

    def write(text=None, older_texts=()):
        if text is not None:
            (tmp_path / "cpu.max").write_text(text)
        for path, content in zip(older, older_texts, strict=False):
            path.write_text(content)

    return write


@pytest.mark.parametrize(
    ("text", "older", "expected"),
    [
        ("400000 100000\n", (), 4),
        ("150000 100000\n", (), 2),
        ("20000 100000\n", (), 1),
        ("9900000 100000\n", (), 64),  # more than it is bound to
        ("max 100000\n", (), 64),
        (None, ("200000\n", "100000\n"), 2),
        (None, ("-1\n", "100000\n"), 64),
        (None, (), 64),
    ],
)
def test_a_quota_is_a_number_of_processors(container, text, older, expected):
    container(text, older)
    assert usable_processors() == expected


def test_threads_and_processes_are_as_many_as_the_quota_keeps_busy(container, monkeypatch):
    assert "OMP_NUM_THREADS" not in environment("cpu", {}), "torch counts what a process is bound to"
    container("600000 100000\n")
    assert quota_of_container() == 6
    assert environment("cpu", {})["OMP_NUM_THREADS"] == "6"
    assert "OMP_NUM_THREADS" not in environment("cpu", {"OMP_NUM_THREADS": "3"})
    assert launch._threads(Shape(2, 1, 0, "h", 7, False)) == "3"
