"""Which base model an adapter or a checkpoint belongs to: a hash of sizes and samples, the same in any sharding.

Two models of one family have the same shapes, so a little of every tensor's data goes into the hash, from its first
byte to its last. Reads about a kilobyte a tensor; no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from swiftlet.errors import CheckpointError, reading
from swiftlet.models.safety import read_config, tensors_in, without_code_fields

SAMPLE_BYTES, NUM_SAMPLES = 256, 5
NOT_IDENTITY = {"transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}


def base_hash(folder: Path) -> str:
    """Return 32 hex digits that tell a model's config and weights from others, in a moment.

    Raises:
        SwiftletError: the folder is no readable model.
    """
    config = {k: v for k, v in without_code_fields(read_config(folder)).items() if k not in NOT_IDENTITY}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    tensors = {name: (path, info) for path, name, info in tensors_in(folder)}
    with ExitStack() as stack:
        files = {
            path: stack.enter_context(path.open("rb")) for path in {path for path, _ in tensors.values()}
        }
        for name in sorted(tensors):
            path, info = tensors[name]
            digest.update(f"\n{name} {info.dtype} {info.shape} ".encode())
            with reading(path):
                for begin, size in _samples(info.num_bytes):
                    files[path].seek(info.begin + begin)
                    digest.update(files[path].read(size))
    return digest.hexdigest()[:32]


def _samples(num_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield begin and size of what is read of a tensor: all of a small one, else pieces at even distances."""
    if num_bytes <= SAMPLE_BYTES * NUM_SAMPLES:
        yield 0, num_bytes
        return
    last = num_bytes - SAMPLE_BYTES
    for number in range(NUM_SAMPLES):
        yield last * number // (NUM_SAMPLES - 1), SAMPLE_BYTES


def check_base(folder: Path, expected: str, *, what: str = "this checkpoint") -> None:
    """Check that the model in `folder` is the one whose hash was recorded.

    Raises:
        CheckpointError: it is another model, or its weights have changed.
    """
    found = base_hash(folder)
    if found != expected:
        raise CheckpointError(
            f"{what} was trained on another base model: hash {expected[:12]}, but {folder} has {found[:12]}",
            "give the base model it was trained on with --model_id_or_path",
        )
