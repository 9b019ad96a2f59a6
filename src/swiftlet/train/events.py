"""TensorBoard event files, written without importing TensorBoard: start-up stays fast.

Source: tensorflow/core/util/event.proto and summary.proto (fields by number), and the record format of
tensorflow/core/lib/io/record_writer: length, masked crc32c of the length, data, masked crc32c of the data.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from swiftlet.files import append_whole

POLYNOMIAL = 0x82F63B78
MASK_DELTA = 0xA282EAD8
VERSION = b"brain.Event:2"


@functools.cache
def _table() -> tuple[int, ...]:
    entries = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
        entries.append(value)
    return tuple(entries)


def masked_crc32c(content: bytes) -> int:
    """Return the masked crc32c of `content`."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _nested(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def encode_event(wall_time: float, step: int = 0, scalars: Mapping[str, float] | None = None) -> bytes:
    """Return one Event: the scalars of a step, or the version that begins a file."""
    head = b"\x09" + struct.pack("<d", wall_time)
    if scalars is None:
        return head + _nested(3, VERSION)
    values = b"".join(
        _nested(1, _nested(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
        for tag, value in scalars.items()
    )
    return head + b"\x10" + _varint(step) + _nested(5, values)


def encode_restart(wall_time: float, step: int) -> bytes:
    """Return the Event of a session that starts: readers forget what other files say of `step` and later ones."""
    return b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step) + _nested(7, b"\x08\x01")


def encode_record(content: bytes) -> bytes:
    """Return `content` with its length and checksums."""
    length = struct.pack("<Q", len(content))
    sums = struct.pack("<I", masked_crc32c(length)), struct.pack("<I", masked_crc32c(content))
    return length + sums[0] + content + sums[1]


def event_file(folder: Path) -> Path:
    """Return a new file name as TensorBoard expects it."""
    return folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"


def append_scalars(path: Path, step: int, scalars: Mapping[str, float], *, first_step: int = 0) -> None:
    """Append the scalars of a step to an event file, which is begun when it is absent.

    Args:
        first_step: the first one that the file may hold; those from there on in earlier files were lost by a kill.

    Raises:
        OSError: the file cannot be written.
    """
    now = time.time()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = encode_record(encode_event(now, step, scalars))
    if not path.exists() or path.stat().st_size == 0:
        start = encode_record(encode_event(now)) + encode_record(encode_restart(now, first_step))
        content = start + content
    append_whole(path, content)
