"""Reaching the first node or process of a run at MASTER_ADDR:MASTER_PORT, which may start later than the others, and
the messages on such a connection: lines of JSON.
"""

from __future__ import annotations

import errno
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from swiftlet.errors import SwiftletError
from swiftlet.log import logger

RETRY_S = 0.5
TELL_S = 30.0
UNREACHABLE_S = 45.0
PROBE_S = 5.0
ANSWER_S = 60.0
MOST_BYTES = 2**20


def connect(who: str, address: str, port: int, timeout_s: float) -> socket.socket:
    """Return a connection to the first one, as soon as it listens; every half a minute of waiting is said.

    Args:
        who: what listens there, in messages.

    Raises:
        SwiftletError: it cannot be reached.
    """
    started = told = time.monotonic()
    while True:
        try:
            line = socket.create_connection((address, port), timeout=PROBE_S)
            if line.getsockname() != line.getpeername():  # a socket that met itself on a free port
                return line
            line.close()
            reason, limit_s = "nobody listens there", timeout_s
        except OSError as error:
            is_there = error.errno == errno.ECONNREFUSED
            reason, limit_s = error.strerror or str(error), timeout_s if is_there else UNREACHABLE_S
        now = time.monotonic()
        if now - started > min(limit_s, timeout_s):
            raise SwiftletError(
                f"{who} at MASTER_ADDR={address}, MASTER_PORT={port} cannot be reached: {reason}",
                f"check MASTER_ADDR, and that {who} is running and no firewall is between",
            )
        if now - told > TELL_S:
            logger().info(f"waiting for {who} at {address}:{port}: {reason}")
            told = now
        time.sleep(RETRY_S)


def send(line: socket.socket, content: Mapping[str, Any], who: str) -> None:
    """Send a message.

    Raises:
        SwiftletError: `who`, the other side, has closed the connection.
    """
    line.settimeout(ANSWER_S)
    try:
        line.sendall(json.dumps(content).encode() + b"\n")
    except OSError as error:
        raise _ended(who) from error


def _ended(who: str) -> SwiftletError:
    return SwiftletError(f"{who} has ended before the start", f"see the log of {who}")


def receive(line: socket.socket, timeout_s: float, who: str) -> dict[str, Any]:
    """Return the next message of `who`; every half a minute of waiting is said.

    Raises:
        SwiftletError: nothing came, `who` has ended, or what came is no message.
    """
    content, until, told = b"", time.monotonic() + timeout_s, time.monotonic()
    try:
        while not content.endswith(b"\n") and len(content) < MOST_BYTES:
            line.settimeout(max(0.01, min(until - time.monotonic(), told + TELL_S - time.monotonic())))
            try:
                part = line.recv(2**16)
            except TimeoutError:
                now = time.monotonic()
                if now >= until:
                    raise
                logger().info(f"waiting for {who}, which is there and has not answered yet")
                told = now
                continue
            if not part:
                raise ConnectionResetError
            content += part
        found = json.loads(content)
    except TimeoutError as error:
        hint = f"see the log of {who}; a larger --ddp_timeout waits longer"
        raise SwiftletError(f"{who} is there, but said nothing for {timeout_s:.0f} s", hint) from error
    except OSError as error:
        raise _ended(who) from error
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SwiftletError(f"{who} sent something else than expected", "use one version on all nodes")
    return found
