"""How an operator gets a kernel: arguments by name from the wheel's schema, CPU tensors over its bytes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from simnpu import graphs

# they live as long as the process
libraries = {space: torch.library.Library(space, "IMPL") for space in ("npu", "aten")}  # noqa: TOR901

# Hints to the device about speed or precision: they change nothing here.
WITHOUT_EFFECT = {
    "inner_precise", "gen_mask_parallel", "sync", "parallel", "use_locking", "can_refresh", "workspace", "top_k_guess",
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


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """An argument with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(change, item) for item in value)
    return value


class Sides:
    """The tensors of one call on both sides: npu tensors and the CPU tensors over their bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.originals: dict[int, Tensor] = {}
        self.aliases: list[Tensor] = []  # keeps the ids in `originals` alive

    def to_cpu(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu":
            return tensor
        alias = torch.ops.simnpu.cpu_alias(tensor.detach())
        self.originals[id(alias)] = tensor
        self.aliases.append(alias)
        return alias

    def to_npu(self, tensor: Tensor) -> Tensor:
        """The argument that this is, or a new npu tensor with these values, which no operator of the device makes."""
        original = self.originals.get(id(tensor))
        if original is not None:
            return original
        result = torch.empty_like(tensor, device=self.device)
        torch.ops.simnpu.cpu_alias(result).copy_(tensor)
        return result


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


def on_cpu(function: Callable, used: dict[str, Any], out: Any, device: torch.device) -> Any:
    """Runs a kernel; the results go into `out` where there is one."""
    sides = Sides(device)
    with torch.no_grad():
        result = function(**{key: mapped(sides.to_cpu, value) for key, value in used.items()})
        return mapped(sides.to_npu, result) if out is None else fill(out, result)


def recorded(
    name: str,
    function: Callable,
    used: dict[str, Any],
    out: Any,
    written: Sequence[str],
    device: torch.device,
) -> Any:
    """The same while the stream is captured: a graph runs it again on the same memory, whoever has that then."""
    borrow = torch.ops.simnpu.borrowed
    for tensor in tensors_in([out, *(used.get(key) for key in written)]):
        torch.ops.simnpu.keep(tensor)
    with graphs.drawing() as seeds:
        result = on_cpu(function, used, out, device)
    inputs = {key: mapped(borrow, value) for key, value in used.items()}
    targets = [borrow(tensor) for tensor in tensors_in(result)]

    def again() -> None:
        with torch.no_grad(), graphs.drawing(seeds):
            for target, value in zip(targets, tensors_in(function(**inputs)), strict=True):
                if target.data_ptr() != value.data_ptr():
                    target.copy_(value)

    graphs.record(name, again)
    return result


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


def fill(out: Tensor | list[Tensor], result: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Gives results, on either side, to the tensors of `out`."""
    pairs = zip(tensors_in(out), tensors_in(result), strict=True)
    for target, value in pairs:
        target.resize_(value.shape)
        if value.device.type == "cpu":
            target = torch.ops.simnpu.cpu_alias(target)
        target.copy_(value)
    return out


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
    written = [
        argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write
    ]
    fills_out = "out" in order and "out" not in wanted
    ignored = WITHOUT_EFFECT | ({"out"} if fills_out else set())

    def call(*args: Any, **kwargs: Any) -> Any:
        values = defaults | dict(zip(order, args, strict=False)) | kwargs
        for key in values.keys() - wanted.keys() - ignored:
            if values[key] not in (None, defaults[key]):
                raise NotSimulated(f"{space}::{operator}: the simulator does not know {key}={values[key]!r}")
        used = {key: values[key] for key in wanted}
        torch.ops.simnpu.count(f"{space}::{operator}")
        out = values["out"] if fills_out else None
        device = device_of(f"{space}::{operator}", used, host)
        if not on_host:
            result = function(**used)
            return fill(out, result) if fills_out else result
        if torch.ops.simnpu.is_recording():
            return recorded(operator, function, used, out, written, device)
        return on_cpu(function, used, out, device)

    libraries[space].impl(operator, call, "PrivateUse1")


@contextmanager
def recording_gradients() -> Iterator[None]:
    """Autograd and its versions of views, also below a TorchDispatchMode, which leaves them out."""
    keys, exclude = torch._C.DispatchKey, torch._C._SetExcludeDispatchKeyGuard
    with (
        torch.enable_grad(),
        exclude(keys.AutogradFunctionality, False),
        exclude(keys.ADInplaceOrView, False),
    ):
        yield


def gradients(function: Callable, inputs: Sequence[Tensor], output_gradients: Sequence[Tensor]) -> tuple:
    """Gradients of `inputs` (zeros where unused) by autograd through the plain maths."""
    with recording_gradients():
        leaves = [tensor.detach().requires_grad_(True) for tensor in inputs]
        outputs = function(*leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)[: len(output_gradients)]
        return torch.autograd.grad(
            outputs, leaves, output_gradients, allow_unused=True, materialize_grads=True
        )
