"""A progress bar on a terminal, plain lines elsewhere; both on standard error."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from swiftlet import log


@dataclass
class Lines:
    """Plain lines, one a log."""

    num_steps: int

    def move(self, step: int, text: str) -> None:
        """Show nothing between lines."""

    def line(self, step: int, text: str) -> None:
        """Log a line."""
        log.info(f"[{step}/{self.num_steps}] {text}")

    def close(self) -> None:
        """Nothing to leave."""


@dataclass
class Bar(Lines):
    """A bar that stays at the bottom of the terminal; the lines go above it."""

    bar: Any
    task: Any

    def move(self, step: int, text: str) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=step, figures=text)

    def close(self) -> None:
        """Stop the bar, which gives standard error back."""
        self.bar.stop()


def build_progress(num_steps: int, first_step: int) -> Lines:
    """Return a bar when standard error is a terminal, plain lines otherwise."""
    if not sys.stderr.isatty():
        return Lines(num_steps)
    from rich import progress
    from rich.console import Console

    columns = [
        progress.TextColumn("step {task.completed}/{task.total}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[figures]}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("left"),
    ]
    bar = progress.Progress(*columns, console=Console(stderr=True), redirect_stdout=False)
    task = bar.add_task("train", total=num_steps, completed=first_step, figures="")
    bar.start()
    return Bar(num_steps, bar, task)


def short_time(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
