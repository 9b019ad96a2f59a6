"""Which base model an adapter or a checkpoint belongs to: a hash of sizes and samples, the same in any sharding.

Two models of one family have the same shapes, so a little of every tensor's data goes into the hash, from its first
byte to its last: about a kilobyte a tensor. Where that is too little, `weights_hash` reads every byte. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from swiftlet.errors import CheckpointError, reading
from swiftlet.files import CHUNK_BYTES
from swiftlet.models.safety import read_config, tensors_in, without_code_fields

SAMPLE_BYTES, NUM_SAMPLES = 256, 5
BASE_NOTE = "adapter_base.json"  # keeps it beside an adapter
NOT_IDENTITY = {"transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}


def base_hash(folder: Path) -> str:
    """Return 32 hex digits that tell a model's config and weights from others, in a moment.

    Raises:
        SwiftletError: the folder is no readable model.
    """
    config = {k: v for k, v in without_code_fields(read_config(folder)).items() if k not in NOT_IDENTITY}
    return _digest(folder, json.dumps(config, sort_keys=True), _samples)[:32]


def weights_hash(folder: Path) -> str:
    """Return the sha256 of names, types, shapes and values of all tensors of a model: about a second for a few GB.

    Raises:
        SwiftletError: the folder is no readable model.
    """
    return _digest(folder, "", _all)


Pieces = Iterable[tuple[int, int]]


def _digest(folder: Path, start: str, pieces: Callable[[int], Pieces]) -> str:
    """Return the sha256 of `start` and the tensors, of whose data `pieces` says what is read: (begin, size)s."""
    digest = hashlib.sha256(start.encode())
    tensors = {name: (path, info) for path, name, info in tensors_in(folder)}
    with ExitStack() as stack:
        files = {}
        for path in {path for path, _ in tensors.values()}:
            with reading(path):
                files[path] = stack.enter_context(path.open("rb"))
        for name in sorted(tensors):
            path, info = tensors[name]
            digest.update(f"\n{name} {info.dtype} {info.shape} ".encode())
            with reading(path):
                for begin, size in pieces(info.num_bytes):
                    files[path].seek(info.begin + begin)
                    digest.update(files[path].read(size))
    return digest.hexdigest()


def _all(num_bytes: int) -> Pieces:
    return ((begin, min(CHUNK_BYTES, num_bytes - begin)) for begin in range(0, num_bytes, CHUNK_BYTES))


def _samples(num_bytes: int) -> Pieces:
    """Return all of a small tensor, else pieces at even distances."""
    if num_bytes <= SAMPLE_BYTES * NUM_SAMPLES:
        return [(0, num_bytes)]
    last = num_bytes - SAMPLE_BYTES
    return [(last * number // (NUM_SAMPLES - 1), SAMPLE_BYTES) for number in range(NUM_SAMPLES)]


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
