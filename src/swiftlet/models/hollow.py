"""A model whose matrices have shape and type but no memory, and the ranges of its files that belong to each of them.

Each matrix is one number, seen from every place of its shape. So adapters can be put on it and forward passes be
tried as with a real model, and memory is taken only for the ranges that a rank keeps. Vectors are small: they are real.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swiftlet.errors import reading
from swiftlet.models.head import inner_model
from swiftlet.models.safety import tensors_in

FILL = 0.02  # the usual size of a weight: activations keep a size at which wrong formulas are seen
OF_PEFT = re.compile(r"\.(base_layer|original_module|modules_to_save\.default)(?=\.)")
ROOT_OF_PEFT = "base_model.model."


@dataclass(frozen=True)
class Weight:
    """A weight of a model in its files; `read(start, stop)` gives rows of its first dimension."""

    shape: torch.Size
    read: Callable[[int, int], Tensor]

    def elements(self, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of the flattened weight; only the rows they lie in are read."""
        row = self.shape[1:].numel() if self.shape else 1
        first, last = start // row, -(-stop // row)
        return self.read(first, last).reshape(-1)[start - first * row : stop - first * row]


def meta_tensors(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a folder by name, without memory."""
    return {name: torch.empty(info.shape, dtype=dtype, device="meta") for _, name, info in tensors_in(folder)}


@torch.no_grad()
def make_hollow(model: Any, folder: Path, device: torch.device) -> None:
    """Give the parameters of a model on the meta device a place on `device`, and its buffers their values.

    Buffers that are not saved are computed as the library does for weights that a file lacks.
    """
    weights = dict(_weights(model, folder))
    found: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        lost = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        for name in lost:
            module._buffers[name] = torch.zeros_like(module._buffers[name], device=device)
        if lost:
            model._init_weights(module)
    for prefix, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if parameter not in found:
                weight = weights.get(f"{prefix}.{name}".lstrip("."))
                found[parameter] = _placed(parameter, weight, device)
            module._parameters[name] = found[parameter]


def _placed(parameter: nn.Parameter, weight: Weight | None, device: torch.device) -> nn.Parameter:
    if parameter.dim() < 2 and weight is not None:
        value = weight.elements(0, parameter.numel()).view(parameter.shape).to(device, parameter.dtype)
    else:
        value = torch.full((), FILL, dtype=parameter.dtype, device=device).expand(parameter.shape)
    return nn.Parameter(value, parameter.requires_grad)


def hollow_copies(model: nn.Module) -> None:
    """Take the memory back that copies of hollow matrices have got, such as those that are trained beside adapters."""
    for module in model.modules():
        copies = getattr(module, "modules_to_save", None)
        for parameter in copies.parameters() if isinstance(copies, nn.ModuleDict) else ():
            if parameter.dim() > 1:
                parameter.data = parameter.data.new_full((), FILL).expand(parameter.shape)


def is_hollow(tensor: Tensor) -> bool:
    """Return whether a weight has no memory of its own."""
    return tensor.dim() > 1 and not any(tensor.stride())


@contextmanager
def tried_hollow(model: nn.Module) -> Iterator[None]:
    """Let experts without memory be computed one by one meanwhile: products of several at once refuse them."""
    inner = inner_model(model)
    if not any(is_hollow(parameter) and parameter.dim() > 2 for parameter in inner.parameters()):
        yield
        return
    own = inner.config._experts_implementation
    inner.set_experts_implementation("eager")
    try:
        yield
    finally:
        inner.set_experts_implementation(own)


def open_weights(model: nn.Module, folder: Path) -> dict[str, Weight]:
    """Return where the hollow parameters of a model lie in the files of `folder`, by their names in the model."""
    inner = inner_model(model)
    in_files = dict(_weights(inner, folder))
    for names in _tied(inner):
        found = next((in_files[name] for name in names if name in in_files), None)
        in_files |= dict.fromkeys(names, found) if found else {}
    root = "" if model is inner else ROOT_OF_PEFT
    return {
        name: in_files[_original(name.removeprefix(root))]
        for name, parameter in model.named_parameters()
        if is_hollow(parameter)
    }


def _tied(inner: nn.Module) -> list[list[str]]:
    """Return the names of parameters that have several; the files hold a shared matrix under one of them."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(_original(name))
    return [found for found in names.values() if len(found) > 1]


def _weights(inner: Any, folder: Path) -> Iterator[tuple[str, Weight]]:
    """Yield the weights by the names of the model without adapters, joined and split as the library loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping = get_model_conversion_mapping(inner)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    shapes = {_original(name): tensor for name, tensor in inner.state_dict(keep_vars=True).items()}
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    joined: dict[str, tuple[Any, list[tuple[str, str, Path]]]] = {}
    for path, name, info in tensors_in(folder):
        target, pattern = rename_source_key(name, renamings, converters, inner.base_model_prefix, shapes)
        if target not in shapes and name in shapes:
            target, pattern = name, None
        if pattern is None:
            yield target, Weight(torch.Size(info.shape), partial(_read, path, name))
        else:
            joined.setdefault(target, (by_pattern[pattern], []))[1].append((name, pattern, path))
    for target, (converter, sources) in joined.items():
        convert = partial(_convert, inner, converter, target, sources)
        for name in _targets(converter, target, shapes):
            yield name, Weight(shapes[name].shape, partial(_rows, convert, name))


def _original(name: str) -> str:
    return OF_PEFT.sub("", name)


def _targets(converter: Any, target: str, shapes: dict[str, Tensor]) -> list[str]:
    """Return the names that a conversion gives: `target` and those of the converter's other patterns beside it."""
    first = converter.target_patterns[0]
    names = [target.replace(first, pattern) for pattern in converter.target_patterns]
    return [name for name in names if name in shapes] or [target]


def _read(path: Path, name: str, start: int, stop: int) -> Tensor:
    from safetensors import safe_open

    with reading(path), safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        return part[start:stop] if part.get_shape() else file.get_tensor(name)


def _convert(
    inner: Any, converter: Any, target: str, sources: list[tuple[str, str, Path]]
) -> dict[str, Tensor]:
    from transformers.core_model_loading import dot_natural_key

    work = deepcopy(converter)
    for name, pattern, path in sorted(sources, key=lambda source: dot_natural_key(source[0])):
        work.add_tensor(target, name, pattern, partial(_read, path, name, 0, 2**62))
    found: dict[str, Any] = work.convert(target, model=inner, config=inner.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}


def _rows(convert: Callable[[], dict[str, Tensor]], name: str, start: int, stop: int) -> Tensor:
    return convert()[name][start:stop]
