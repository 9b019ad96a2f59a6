"""Standard output for tables: whoever reads it may leave, as `head` does, and the exit code stays the command's own."""

from __future__ import annotations

import sys

from rich.console import Console

from swiftlet.stopping import send_nowhere


class Output(Console):
    """A console that prints on where nobody reads any more; rich's own ends the program with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Let what follows be lost."""
        send_nowhere(sys.stdout.fileno())
