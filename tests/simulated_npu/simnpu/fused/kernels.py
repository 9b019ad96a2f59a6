"""How an operator gets a kernel: arguments by name from the wheel's schema, CPU tensors over its bytes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# they live as long as the process
libraries = {space: torch.library.Library(space, "IMPL") for space in ("npu", "aten")}  # noqa: TOR901

# Hints to the device about speed or precision: they change nothing here.
WITHOUT_EFFECT = {
    "inner_precise", "gen_mask_parallel", "sync", "parallel", "use_locking", "can_refresh", "workspace",
}  # fmt: skip


class NotSimulated(RuntimeError):
    """The maths here does not cover this use of an operator."""


@contextmanager
def registering() -> Iterator[None]:
    """torch warns of every kernel that replaces another; here that is the purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check(condition: bool, message: str) -> None:
    """Raises RuntimeError(message), as a device operator does on an invalid argument."""
    if not condition:
        raise RuntimeError(message)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in an argument."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


class Sides:
    """The tensors of one call on both sides: npu tensors and the CPU tensors over their bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.originals: dict[int, Tensor] = {}
        self.aliases: list[Tensor] = []  # keeps the ids in `originals` alive

    def to_cpu(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.device.type == "cpu":
                return value
            alias = torch.ops.simnpu.cpu_alias(value.detach())
            self.originals[id(alias)] = value
            self.aliases.append(alias)
            return alias
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_cpu(item) for item in value)
        return value

    def adopted(self, value: Tensor) -> Tensor:
        """A new npu tensor with these values; no operator of the device, as a real kernel writes its own result."""
        result = torch.empty_like(value, device=self.device)
        torch.ops.simnpu.cpu_alias(result).copy_(value)
        return result

    def to_npu(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            original = self.originals.get(id(value))
            return self.adopted(value) if original is None else original
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_npu(item) for item in value)
        return value


def device_of(name: str, values: dict[str, Any], may_be_cpu: Sequence[str]) -> torch.device:
    """The one device of a call's tensors."""
    found = [tensor for key, value in values.items() if key not in may_be_cpu for tensor in tensors_in(value)]
    for tensor in found:
        check(
            tensor.device.type != "cpu" or tensor.dim() == 0,
            "Expected all tensors to be on the same device. Expected NPU tensor, please check whether the input "
            f"tensor device is correct. ({name})",
        )
    on_npu = [tensor.device for tensor in found if tensor.device.type != "cpu"]
    return on_npu[0] if on_npu else torch.device("npu", torch.npu.current_device())


def kernel(*names: str, host: Sequence[str] = (), on_host: bool = True) -> Callable[[Callable], Callable]:
    """Registers a function as the kernel of npu::<name>.

    Args:
        names: operators with the same arguments, `name` or `name.overload`; of aten with `aten::` before it. Where only
            the schema has an `out`, it gets what the function returns.
        host: arguments that may be CPU tensors on the device too.
        on_host: give the function CPU tensors; otherwise it gets the npu tensors themselves.
    """

    def register(function: Callable) -> Callable:
        for name in names:
            register_one(name, function, host, on_host)
        return function

    return register


def fill(out: Tensor | list[Tensor], result: Tensor | Sequence[Tensor]) -> None:
    """Gives results to the tensors of `out`."""
    one = isinstance(out, Tensor)
    for target, value in zip([out] if one else out, [result] if one else result, strict=True):
        target.resize_(value.shape).copy_(value)


def register_one(name: str, function: Callable, host: Sequence[str], on_host: bool) -> None:
    """One operator: its wrapper fills in the schema's defaults and refuses arguments that the function lacks."""
    space, _, operator = name.rpartition("::")
    space = space or "npu"
    packet, _, overload = operator.partition(".")
    schema = getattr(getattr(getattr(torch.ops, space), packet), overload or "default")._schema
    order = [argument.name for argument in schema.arguments]
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    wanted = inspect.signature(function).parameters
    unknown = set(wanted) - set(order)
    assert not unknown, f"{space}::{operator} has no argument {unknown}; it has {order}"
    fills_out = "out" in order and "out" not in wanted
    ignored = WITHOUT_EFFECT | ({"out"} if fills_out else set())

    def call(*args: Any, **kwargs: Any) -> Any:
        values = defaults | dict(zip(order, args, strict=False)) | kwargs
        for key in values.keys() - wanted.keys() - ignored:
            if values[key] not in (None, defaults[key]):
                raise NotSimulated(f"{space}::{operator}: the simulator does not know {key}={values[key]!r}")
        used = {key: values[key] for key in wanted}
        torch.ops.simnpu.count(f"{space}::{operator}")
        device = device_of(f"{space}::{operator}", used, host)
        if not on_host:
            result = function(**used)
        else:
            sides = Sides(device)
            with torch.no_grad():
                result = sides.to_npu(function(**{key: sides.to_cpu(value) for key, value in used.items()}))
        if not fills_out:
            return result
        fill(values["out"], result)
        return values["out"]

    libraries[space].impl(operator, call, "PrivateUse1")


def gradients(function: Callable, inputs: Sequence[Tensor], output_gradients: Sequence[Tensor]) -> tuple:
    """Gradients of `inputs` (zeros where unused) by autograd through the plain maths."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_(True) for tensor in inputs]
        outputs = function(*leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)[: len(output_gradients)]
        return torch.autograd.grad(
            outputs, leaves, output_gradients, allow_unused=True, materialize_grads=True
        )
