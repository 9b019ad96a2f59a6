"""What is told of an error that is not ours."""

import pytest

from swiftlet.errors import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("one\ntwo"), "one"),
        (RuntimeError("\n  CUDA error: no memory \nat somewhere"), "CUDA error: no memory"),
        (RuntimeError(), "RuntimeError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_the_first_line_of_an_error_is_told_or_its_kind_where_it_says_nothing(error, told):
    assert first_line(error) == told
