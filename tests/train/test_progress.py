"""What a terminal shows while a run goes on: a bar below the lines of the log."""

from __future__ import annotations

import io
import re
import sys

from swiftlet import log
from swiftlet.train.progress import Bar, build_progress

STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(monkeypatch):
    """Put a terminal in the place of standard error; in the test, for pytest puts its own there before each phase."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def shown(screen):
    return STYLES.sub("", screen.getvalue())


def test_a_bar_goes_on_where_a_resumed_run_does_and_lines_stay_above_it(monkeypatch):
    terminal = watch(monkeypatch)
    progress = build_progress(num_steps=12, first_step=4)
    assert isinstance(progress, Bar)
    progress.bar.refresh()
    assert "step 4/12" in shown(terminal)
    progress.move(5, "loss 0.25 [b]300 tokens/s")
    progress.bar.refresh()
    assert re.search(r"step 5/12 .* loss 0\.25 \S*300 tokens/s", shown(terminal))
    progress.line(5, "loss 0.25")
    log.warning("a word of another room")
    progress.close()
    lines = [line.split("\r")[-1].strip() for line in shown(terminal).splitlines()]
    assert "[5/12] loss 0.25" in lines
    assert "warning: a word of another room" in lines
    assert lines[-1].startswith("step 5/12")


def test_standard_error_is_given_back_when_the_bar_is_closed(monkeypatch):
    terminal = watch(monkeypatch)
    progress = build_progress(num_steps=3, first_step=0)
    assert sys.stderr is not terminal
    progress.close()
    assert sys.stderr is terminal


def test_nothing_moves_where_nobody_watches(monkeypatch, capfd):
    progress = build_progress(num_steps=12, first_step=4)
    progress.move(5, "loss 0.25")
    progress.close()
    assert capfd.readouterr().err == ""
    progress.line(5, "loss 0.25")
    assert "[5/12] loss 0.25" in capfd.readouterr().err


def test_the_time_that_is_left_stands_before_that_word(monkeypatch):
    """It read `0:00:04 left 0:00:00`, where the first is what has passed."""
    terminal = watch(monkeypatch)
    progress = build_progress(num_steps=4, first_step=0)
    progress.move(2, "loss 5.4")
    progress.close()
    assert re.search(r"step 2/4 .* loss 5\.4 \d:\d\d:\d\d [\d:-]+ left", shown(terminal)), shown(terminal)
