"""Tensors to a file that those may read who may read the files beside it: the library makes it the owner's alone."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, with the permissions that a new file has here."""
    from safetensors.torch import save_file

    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata=None if metadata is None else dict(metadata))
    path.chmod(mode)
