"""What a model folder may make us do: read JSON and safetensors, nothing else. No torch, nothing is executed.

Checked before anything is opened by a library: names in the weight index stay inside the folder, headers of
safetensors are small and agree with the file's size, other weight formats are refused unread, and the fields of a
config.json that make a library import code or download kernels are dropped.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from swiftlet import log
from swiftlet.errors import SwiftletError, describe, reading
from swiftlet.files import leads_out

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_JSON_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 100 * 10**6  # the limit of the safetensors library itself
UNREADABLE = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt"}
CODE_FIELDS = re.compile(
    r"^(auto_map|trust_remote_code|custom_pipelines|.*attn_implementation.*|.*experts_implementation.*"
    r"|.*kernel.*(config|repo).*|use_kernels|fusion_config|distributed_config|transformers_weights|gguf_file"
    r"|extra_files|adapter_kwargs|_adapter_model_path|_name_or_path|_commit_hash)$"
)
CODE_CLASSES = ("AutoConfig", "AutoModelForCausalLM")  # of auto_map, the two that are run
# How transformers writes floats that JSON has no word for.
FLOAT, SPECIAL_FLOATS = "__float__", ("Infinity", "-Infinity", "NaN")
# The largest plausible sizes in a config.json: what is built from larger ones has no end.
LARGEST = {
    "num_hidden_layers": 2**12,
    "hidden_size": 2**20,
    "vocab_size": 2**26,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**16,
    "intermediate_size": 2**24,
    "moe_intermediate_size": 2**24,
    "shared_expert_intermediate_size": 2**24,
    "num_experts_per_tok": 2**16,
}
NEVER_ZERO = frozenset("num_hidden_layers hidden_size vocab_size num_attention_heads".split())


class TensorInfo(NamedTuple):
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    num_bytes: int


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of bounded size.

    Raises:
        SwiftletError: it is absent, too large, or holds no JSON object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise SwiftletError(
                f"{path} has {size} bytes, too many for a settings file", "get the file again"
            )
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SwiftletError(
            f"{path} cannot be read: {error.strerror}", "give the folder of a model"
        ) from error
    except RecursionError as error:
        raise SwiftletError(f"{path} is nested too deeply", "get the file again") from error
    except ValueError as error:
        reason = f"{path} is not valid JSON: {error}"
        raise SwiftletError(reason, "get the file again from where the model came") from error
    if not isinstance(content, dict):
        raise SwiftletError(f"{path} holds {describe(content)}, not an object", "get the file again")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's config.json as it is.

    Raises:
        SwiftletError: there is none, it is an adapter's folder, it names no model_type, or a size is no size.
    """
    if not folder.is_dir():
        raise SwiftletError(f"{folder} is not a folder", "give the folder that holds config.json")
    if not (folder / CONFIG).is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise SwiftletError(f"{folder} holds an adapter, not a model", f"use --ckpt_dir {folder}")
        raise SwiftletError(
            f"{folder} has no {CONFIG}", "give the folder of a model in the format of transformers"
        )
    config = read_json(inside(folder, CONFIG))
    if not isinstance(config.get("model_type"), str):
        raise SwiftletError(
            f"{folder / CONFIG} names no model_type", "get the file again from where the model came"
        )
    inner = config.get("text_config")
    for sizes in (config, inner if isinstance(inner, dict) else {}):
        _check_sizes(folder / CONFIG, sizes)
    return config


def _check_sizes(path: Path, sizes: dict[str, Any]) -> None:
    """Check the sizes that are given as one number; some architectures have a list, one for each layer."""
    for name, largest in LARGEST.items():
        value, least = sizes.get(name), 1 if name in NEVER_ZERO else 0
        if value is None or isinstance(value, list):
            continue
        if type(value) is not int or not least <= value <= largest:
            raise SwiftletError(
                f"{path}: {name} is {describe(value)}, not a whole number from {least} to {largest}",
                "get the file again from where the model came",
            )


def without_code_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without the fields, at any depth, by which it could choose code, kernels or other files."""
    kept: dict[str, Any] = {}
    for name, value in config.items():
        if CODE_FIELDS.match(name):
            continue
        kept[name] = without_code_fields(value) if isinstance(value, dict) else value
    return kept


def for_library(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as transformers takes it: without code fields, its special floats decoded at any depth."""
    found: dict[str, Any] = json.loads(json.dumps(without_code_fields(config)), object_hook=_decoded)
    return found


def _decoded(entry: dict[str, Any]) -> Any:
    is_float = entry.keys() == {FLOAT} and entry[FLOAT] in SPECIAL_FLOATS
    return float(entry[FLOAT]) if is_float else entry


def inside(folder: Path, name: str) -> Path:
    """Return `folder / name`, which must lie in the folder, links followed. Links within a hub's cache are fine.

    Raises:
        SwiftletError: the name is absolute, climbs out, has odd characters or is too long, or a link leads out.
    """
    odd = "\0" in name or "\\" in name or "%" in name or len(name) > 255 or not name.isprintable()
    if odd or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise SwiftletError(
            f"{folder} names a file outside of itself: {describe(name)}",
            "do not use this model: it was tampered with",
        )
    path = folder / name
    if leads_out(path, folder):
        raise SwiftletError(
            f"{path} is a link that leads out of its folder, to {path.resolve()}",
            "copy the file into the folder",
        )
    return path


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model in the order of their names.

    Raises:
        SwiftletError: there are none, or the index is wrong, or a file is missing or leads out of the folder.
    """
    if (folder / SINGLE).is_file() or (folder / SINGLE).is_symlink():
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        names = _indexed(folder)
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors") if path.name != ADAPTER_WEIGHTS)
    if not names:
        raise _no_safetensors(folder)
    files = [inside(folder, name) for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise SwiftletError(
            f"{folder} lacks {', '.join(missing[:5])}", "the download is incomplete: repeat it"
        )
    return files


def _indexed(folder: Path) -> list[str]:
    weight_map = read_json(inside(folder, INDEX)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise SwiftletError(f"{folder / INDEX} has no usable weight_map", "get the file again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not name.endswith(".safetensors"):
            raise SwiftletError(
                f"{folder / INDEX} names {describe(name)}, not safetensors", "do not use this model"
            )
    return names


def _no_safetensors(folder: Path) -> SwiftletError:
    others = sorted(
        path.name for path in folder.iterdir() if path.suffix in UNREADABLE and path.name not in NOT_WEIGHTS
    )
    if not others:
        return SwiftletError(
            f"{folder} has no weights (*.safetensors)", "the download is incomplete: repeat it"
        )
    shown = ", ".join(others[:3])
    how = f"from_pretrained({str(folder)!r}" + (
        f", gguf_file={others[0]!r})" if ".gguf" in others[0] else ")"
    )
    return SwiftletError(
        f"{folder} has its weights only as {shown}, which is not read here: such files can run code when opened, "
        "or are made for another program",
        "take a copy with safetensors; or, if you trust its maker, convert it: "
        f"python -c \"from transformers import AutoModelForCausalLM as M; M.{how}.save_pretrained('NEW_FOLDER')\" "
        "and copy the tokenizer files beside it",
    )


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return what a safetensors file holds, from its header alone; `begin` counts from the start of the file.

    Raises:
        SwiftletError: the header is too large, no header at all, or the file is shorter or longer than it says, or
            cannot be read.
    """
    with reading(path), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER_BYTES:
            raise SwiftletError(
                f"{path} is not a safetensors file: its header would have {length} bytes of {size}",
                "the file is damaged or a pointer of git-lfs: download it again",
            )
        raw = file.read(length)
    try:
        if length > len(raw):
            raise ValueError("the header is cut off")
        content = {name: value for name, value in json.loads(raw).items() if name != "__metadata__"}
        entries = {name: _entry(value, 8 + length) for name, value in content.items()}
        end = max((int(value["data_offsets"][1]) for value in content.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise SwiftletError(f"{path} has a damaged header: {error}", "download the file again") from error
    if 8 + length + end != size:
        raise SwiftletError(
            f"{path} has {size} bytes, its header says {8 + length + end}",
            "it is cut off: download the file again",
        )
    return entries


def tensors_in(folder: Path) -> Iterator[tuple[Path, str, TensorInfo]]:
    """Yield the file, name and header entry of each tensor of a model.

    Raises:
        SwiftletError: see `weight_files` and `read_header`.
    """
    for path in weight_files(folder):
        for name, info in read_header(path).items():
            yield path, name, info


def _entry(value: dict[str, Any], start: int) -> TensorInfo:
    (begin, end), shape = value["data_offsets"], tuple(value["shape"])
    if any(type(number) is not int for number in (begin, end, *shape)) or not 0 <= begin <= end:
        raise ValueError(f"offsets {begin} to {end}, shape {list(shape)}")
    return TensorInfo(str(value["dtype"]), shape, start + begin, end - begin)


def check_may_run_code(folder: Path, config: dict[str, Any]) -> None:
    """Check, with --trust_remote_code, that the code is the folder's own and that only its owner can change it.

    Raises:
        SwiftletError: the code is not there or in another repository, or others can write here.
    """
    found = config.get("auto_map")
    references = found if isinstance(found, dict) else {}
    elsewhere = [str(name) for name in references.values() if "--" in str(name)]
    if elsewhere:
        hint = "copy that code into the folder and name it in auto_map, after reading it"
        raise SwiftletError(f"{folder / CONFIG} takes its code from another repository: {elsewhere[0]}", hint)
    run = [references[name] for name in CODE_CLASSES if name in references]
    odd = [name for name in run if not isinstance(name, str) or not re.fullmatch(r"\w+\.\w+", name)]
    if odd:
        why = f"{folder / CONFIG} takes code from a place that is no file of the folder: {describe(odd[0])}"
        raise SwiftletError(why, "do not use this model: it was tampered with")
    lacking = [file for name in run if not (folder / (file := name.partition(".")[0] + ".py")).is_file()]
    if lacking:
        hint = "copy the .py files there from where the model came, after reading them"
        raise SwiftletError(f"{folder} lacks the code that its {CONFIG} names: {lacking[0]}", hint)
    for path in (folder, *(inside(folder, one.name) for one in sorted(folder.glob("*.py")))):
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SwiftletError(f"others can write to {path}, so its code is not run", f"chmod go-w {path}")
    log.warning(f"--trust_remote_code: Python code in {folder} will be run")
