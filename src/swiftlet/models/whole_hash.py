"""A hash of all weights of a model, the same in any sharding: it reads every byte, about a second for a few GB."""

from __future__ import annotations

import hashlib
from pathlib import Path

from swiftlet.errors import reading
from swiftlet.files import CHUNK_BYTES
from swiftlet.models.safety import tensors_in


def weights_hash(folder: Path) -> str:
    """Return the sha256 of names, types, shapes and values of all tensors of a model.

    Raises:
        SwiftletError: the folder is no readable model.
    """
    tensors = {name: (path, info) for path, name, info in tensors_in(folder)}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        path, info = tensors[name]
        digest.update(f"\n{name} {info.dtype} {info.shape} ".encode())
        with reading(path), path.open("rb") as file:
            file.seek(info.begin)
            left = info.num_bytes
            while left and (chunk := file.read(min(CHUNK_BYTES, left))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()
