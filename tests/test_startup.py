"""Imports and loading without the collector of cycles."""

import gc
import weakref

import pytest

from swiftlet.startup import without_collector


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
