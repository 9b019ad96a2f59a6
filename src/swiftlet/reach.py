"""Reaching the first node or process of a run at MASTER_ADDR:MASTER_PORT, which may start later than the others."""

from __future__ import annotations

import errno
import socket
import time

from swiftlet.errors import SwiftletError
from swiftlet.log import logger

RETRY_S = 0.5
TELL_S = 30.0
UNREACHABLE_S = 45.0
PROBE_S = 5.0


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
