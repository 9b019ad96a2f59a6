"""A trained model to files that any program reads: safetensors and JSON, the same bytes for the same weights.

A full model is written tensor by tensor into shards, from the model or from an iterator, so that where parameters are
sharded no rank ever holds them all. Settings and tokenizer are the source's own files. No pickle, no README, and no
path of this machine but the name of the base in adapter_config.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swiftlet.config.filenames import TOKENIZER_FILES
from swiftlet.errors import reading
from swiftlet.files import files_like
from swiftlet.models.adapter import adapter_tensors
from swiftlet.models.base_hash import BASE_NOTE, base_hash
from swiftlet.models.decoder import Decoder
from swiftlet.models.safety import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    SINGLE,
    inside,
    read_config,
)
from swiftlet.models.start import has_start, with_start
from swiftlet.models.tensor_file import write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_SHARD_BYTES = 5 * 10**9
METADATA = {"format": "pt"}  # one entry: the order of several is not the same in every process
BLOCK = re.compile(r"^(.*?\.\d+)\.")
NOT_KEPT = re.compile(r"^(_name_or_path|quantization_config|torch_dtype|.*(attn|experts)_implementation.*)$")
COPIED = (*TOKENIZER_FILES, GENERATION_CONFIG)
CODE = ("*.py",)


def write_model(
    model: nn.Module,
    folder: Path,
    *,
    source: Path,
    is_adapter: bool,
    tensors: Iterable[tuple[str, Tensor]] | None = None,
    is_writer: bool = True,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write an adapter or a whole model into an existing folder.

    Args:
        source: the base model's folder, whose tokenizer files are copied byte by byte.
        tensors: what `to_save` returns, or a part of that at a time; the model's own when not given. Every rank takes
            them one by one, in the same order.
        is_writer: whether this process writes; the others only take part in gathering.
    """
    pairs = to_save(model, _own(model), is_adapter=is_adapter) if tensors is None else iter(tensors)
    if is_adapter:
        state = {name: _plain(tensor) for name, tensor in pairs}
        if is_writer:
            _write_adapter(model, folder, source, state)
    else:
        dtype = _write_shards(model, pairs, folder, is_writer, max_shard_bytes)
        if is_writer:
            _write_config(model, folder, source, dtype)
    if is_writer:
        copy_files(source, folder, COPIED)


def model_bytes(model: nn.Module, is_adapter: bool) -> int:
    """Return about how many bytes `write_model` will write, tokenizer aside."""
    parameters = [p for p in model.parameters() if p.requires_grad or not is_adapter]
    number = sum(p.numel() * p.element_size() for p in parameters)
    return number * (2 if is_adapter and has_start(model) else 1)


def to_save(
    model: nn.Module, tensors: Iterable[tuple[str, Tensor]], *, is_adapter: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors by the names that `write_model` takes them by.

    Not while a pass runs: FSDP2 shards a module again whenever its state is asked for.

    Args:
        tensors: names as in `model.named_parameters()` (for an adapter at least the trained ones) and whole tensors.
    """
    pairs = _once(model, tensors)
    yield from adapter_tensors(model, dict(pairs)).items() if is_adapter else pairs  # type: ignore[arg-type]


def tensors_to_save(model: nn.Module, *, is_adapter: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model that are saved: the trained ones for an adapter, else all."""
    return ((name, tensor) for name, tensor in _own(model) if tensor.requires_grad or not is_adapter)


def write_gathered(
    model: nn.Module,
    folder: Path,
    source: Path,
    tensors: Iterator[tuple[str, Tensor]],
    is_writer: bool,
    max_shard_bytes: int,
) -> None:
    """Write a whole model from tensors that all ranks gather together; all are taken even when the disk is full."""
    try:
        write_model(
            model,
            folder,
            source=source,
            is_adapter=False,
            tensors=to_save(model, tensors, is_adapter=False),
            is_writer=is_writer,
            max_shard_bytes=max_shard_bytes,
        )
    finally:
        for _ in tensors:
            pass


def copy_files(source: Path, folder: Path, patterns: Iterable[str]) -> None:
    """Copy the files of `source` that match, byte by byte, into the same places of `folder`.

    Raises:
        SwiftletError: one cannot be read, or is a link to a file elsewhere, which is not the model's to give away.
    """
    for name in files_like(source, patterns):
        path, target = inside(source, name), folder / name
        with reading(path):
            content = path.read_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _own(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's tensors without the second name of a tied one."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _once(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    second_names = model.state_dict(keep_vars=True).keys() - dict(_own(model)).keys()
    yield from ((name, tensor) for name, tensor in tensors if name not in second_names)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()


def _write_adapter(model: Any, folder: Path, source: Path, tensors: dict[str, Tensor]) -> None:
    config = model.peft_config["default"]
    fields = config.to_dict() | {"inference_mode": True, "base_model_name_or_path": str(source)}
    note: dict[str, Any] = {"base_hash": base_hash(source)}
    if has_start(model):
        tensors = with_start(model, tensors)
        note["start"] = {"rank": config.r, "alpha": config.lora_alpha, "init": config.init_lora_weights}
        factor = 2**0.5 if config.use_rslora else 2
        fields |= {"r": 2 * config.r, "lora_alpha": factor * config.lora_alpha, "init_lora_weights": True}
    _write_json(folder / ADAPTER_CONFIG, {name: _ordered(value) for name, value in fields.items()})
    _write_json(folder / BASE_NOTE, note)
    write_tensors({name: tensors[name] for name in sorted(tensors)}, folder / ADAPTER_WEIGHTS, METADATA)


def _ordered(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return {name: _ordered(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


def _write_shards(
    model: Any, pairs: Iterator[tuple[str, Tensor]], folder: Path, is_writer: bool, max_shard_bytes: int
) -> torch.dtype:
    """Write the tensors as they come into shards of at most this size (one tensor may be larger), and their index.

    Returns:
        The type of the first tensor written, the embedding's as a rule; sharded parameters may be kept in a finer one.
    """
    shard: dict[str, Tensor] = {}
    dtype: torch.dtype | None = None
    places: list[list[str]] = []
    size = total = num_parameters = 0
    for name, tensor in _as_published(model, pairs, is_writer):
        num_bytes = tensor.numel() * tensor.element_size()
        if shard and size + num_bytes > max_shard_bytes:
            places.append(_write_shard(folder, len(places), shard))
            shard, size = {}, 0
        shard[name] = tensor
        dtype = dtype or tensor.dtype
        size, total, num_parameters = size + num_bytes, total + num_bytes, num_parameters + tensor.numel()
    dtype = dtype or next(model.parameters()).dtype
    if not is_writer:
        return dtype
    places.append(_write_shard(folder, len(places), shard))
    if len(places) == 1:
        (folder / _draft(0)).rename(folder / SINGLE)
        return dtype
    weight_map = {}
    for at, names in enumerate(places):
        file_name = f"model-{at + 1:05}-of-{len(places):05}.safetensors"
        (folder / _draft(at)).rename(folder / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    metadata = {"total_size": total, "total_parameters": num_parameters}
    _write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})
    return dtype


def _draft(number: int) -> str:
    return f"shard-{number + 1:05}.part"


def _write_shard(folder: Path, number: int, tensors: dict[str, Tensor]) -> list[str]:
    write_tensors({name: tensors[name] for name in sorted(tensors)}, folder / _draft(number), METADATA)
    return list(tensors)


def _as_published(
    model: Any, pairs: Iterator[tuple[str, Tensor]], is_writer: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors under the names and in the pieces of the published files, block by block.

    transformers joins some weights when it loads a model, such as the experts of a layer; this takes them apart again.
    """
    if isinstance(model, Decoder):
        yield from ((name, _plain(tensor)) for name, tensor in pairs if is_writer)
        return
    from transformers.core_model_loading import revert_weight_conversion

    for _, block in groupby(pairs, key=lambda pair: _block(pair[0])):
        if is_writer:
            named = {name: _plain(tensor) for name, tensor in block}
            with torch.no_grad():
                published = revert_weight_conversion(model, named)
            yield from ((name, tensor.contiguous()) for name, tensor in published.items())
        else:
            for _pair in block:
                pass


def _block(name: str) -> str:
    match = BLOCK.match(name)
    return match[1] if match else name


def _write_config(model: PreTrainedModel | Any, folder: Path, source: Path, kind: torch.dtype) -> None:
    raw, own_kind = read_config(source), model.config.model_type
    if raw["model_type"] != own_kind and isinstance(raw.get("text_config"), dict):  # of its text alone
        raw = {"tie_word_embeddings": False, **raw["text_config"], "model_type": own_kind}
    fields = {name: value for name, value in raw.items() if not NOT_KEPT.match(name)}
    dtype = str(kind).removeprefix("torch.")
    fields |= {
        "dtype": dtype,
        "torch_dtype": dtype,
        "architectures": [type(model).__name__.removeprefix("FSDP")],
    }
    if "tie_word_embeddings" in fields or not model.config.tie_word_embeddings:
        fields["tie_word_embeddings"] = bool(model.config.tie_word_embeddings)
    if model.is_remote_code():
        copy_files(source, folder, CODE)
    else:
        fields.pop("auto_map", None)
    _write_json(folder / CONFIG, fields)
