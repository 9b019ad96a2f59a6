"""Optimizer state in safetensors files of a bounded size, written and read one tensor at a time.

Names are `{key}/{parameter name}` as an engine gives them. No pickle is written or read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from swiftlet.errors import reading
from swiftlet.models.tensor_file import write_tensors
from swiftlet.train.manifest import OPTIMIZER_FILES

PATTERN = "optimizer-{number:05d}.safetensors"
SHARD_BYTES = 2 * 2**30


def copied(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Return copies of the tensors in host memory, which later steps do not change."""
    return [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in tensors]


def write_optimizer(folder: Path | None, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write the tensors to `folder`; None takes them and writes nothing, as ranks other than 0 do.

    All tensors are taken even when the disk is full, so that no rank waits for one that gave up.
    """
    shard: dict[str, torch.Tensor] = {}
    size, number, failure = 0, 1, None
    for name, tensor in tensors:
        if folder is None or failure is not None:
            continue
        nbytes = tensor.numel() * tensor.element_size()
        if shard and size + nbytes > SHARD_BYTES:
            failure = _try_write(folder, number, shard)
            shard, size, number = {}, 0, number + 1
        shard[name] = tensor.detach().to("cpu").contiguous()
        size += nbytes
    if shard and failure is None and folder is not None:
        failure = _try_write(folder, number, shard)
    if failure is not None:
        raise failure


def _try_write(folder: Path, number: int, shard: dict[str, torch.Tensor]) -> Exception | None:
    try:
        write_tensors(shard, folder / PATTERN.format(number=number))
    except (OSError, SafetensorError) as error:
        return error
    return None


@dataclass(frozen=True)
class OptimizerFiles(Mapping[str, torch.Tensor]):
    """The tensors of `write_optimizer`, each read from the disk when it is asked for; `open_optimizer` makes it."""

    _where: dict[str, Path]

    def __getitem__(self, name: str) -> torch.Tensor:
        with reading(self._where[name]), safe_open(self._where[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def open_optimizer(folder: Path) -> OptimizerFiles:
    """Return the optimizer state in a checkpoint folder; empty when it was saved without one."""
    where: dict[str, Path] = {}
    for path in sorted(folder.glob(OPTIMIZER_FILES)):
        with reading(path), safe_open(path, framework="pt") as file:
            where.update(dict.fromkeys(file.keys(), path))
    return OptimizerFiles(where)
