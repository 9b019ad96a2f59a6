"""A hash of all weights of a model, the same in any sharding: it reads every byte, about a second for a few GB."""

from __future__ import annotations

import hashlib
from pathlib import Path

from swiftlet.models.safety import read_header, weight_files

CHUNK_BYTES = 2**22


def weights_hash(folder: Path) -> str:
    """Return the sha256 of names, types, shapes and values of all tensors of a model.

    Raises:
        SwiftletError: the folder is no readable model.
    """
    tensors = {
        name: (path, info) for path in weight_files(folder) for name, info in read_header(path).items()
    }
    digest = hashlib.sha256()
    for name in sorted(tensors):
        path, info = tensors[name]
        digest.update(f"\n{name} {info.dtype} {info.shape} ".encode())
        with path.open("rb") as file:
            file.seek(info.begin)
            left = info.num_bytes
            while left and (chunk := file.read(min(CHUNK_BYTES, left))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()
