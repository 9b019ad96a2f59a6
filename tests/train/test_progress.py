"""The bar of a terminal."""

from __future__ import annotations

import io
import re
import sys

from swiftlet.train.progress import build_progress

COLOURS = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")


class Terminal(io.StringIO):
    """A terminal that keeps what it is shown."""

    def isatty(self) -> bool:
        """Return that it is one."""
        return True


def test_the_time_that_is_left_stands_before_that_word(monkeypatch):
    """It read `0:00:04 left 0:00:00`, where the first is what has passed."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = build_progress(4, 0)
    bar.move(2, "loss 5.4")
    bar.close()
    shown = COLOURS.sub("", sys.stderr.getvalue())
    assert re.search(r"step 2/4 .* loss 5\.4 \d:\d\d:\d\d [\d:-]+ left", shown), shown
