"""Two nodes on one machine: network namespaces joined by a pair of virtual interfaces."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> bool:
    """Run the `ip` program; return whether it succeeded."""
    try:
        return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def two_nodes(name: str) -> Iterator[tuple[str, str] | None]:
    """Make two namespaces that reach each other over an interface `link`; None where that is not permitted."""
    spaces = (f"{name}-0", f"{name}-1")
    try:
        ok = all(ip("netns", "add", space) for space in spaces)
        pair = ("type", "veth", "peer", "name", "link", "netns", spaces[1])
        ok = ok and ip("link", "add", "name", "link", "netns", spaces[0], *pair)
        for space, address in zip(spaces, ADDRESSES, strict=True):
            ok = ok and ip("-n", space, "addr", "add", f"{address}/24", "dev", "link")
            ok = (
                ok
                and ip("-n", space, "link", "set", "dev", "link", "up")
                and ip("-n", space, "link", "set", "dev", "lo", "up")
            )
        yield spaces if ok else None
    finally:
        for space in spaces:
            ip("netns", "del", space)
