"""Where files that are kept between runs lie."""

import pwd
from pathlib import Path

import pytest

from swiftlet.config.places import cache_folder, expanded
from swiftlet.errors import UsageError


@pytest.fixture
def homeless(monkeypatch):
    """A user that no variable and no entry of the machine gives a home folder."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_user_without_a_home_folder_is_told_what_to_type(homeless):
    with pytest.raises(UsageError, match="this user has no home folder") as caught:
        cache_folder({})
    assert caught.value.hint == "type HOME=FOLDER before the command"


def test_what_is_given_needs_no_home_folder(homeless):
    assert cache_folder({"SWIFTLET_CACHE": "/c"}) == Path("/c")
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/swiftlet")
    assert expanded("output") == Path("output")
