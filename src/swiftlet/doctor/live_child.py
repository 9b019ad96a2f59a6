"""What `swift doctor` runs on devices, in processes of its own: a matmul, attention and its gradient, an all-reduce.

Each check prints one line of JSON when it begins and one when it has ended, so that the parent can name the one that
hangs. Nothing is imported from torch before `main`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import Any

SIZE = 256  # of the matrix
SHAPE = (1, 4, 128, 64)  # of query, key and value: batch, heads, tokens, width
# Of the largest difference, relative to the largest value of the reference.
TOLERANCE = {
    "fp32": 1e-3,
    "bf16": 3e-2,
}


def say(**facts: Any) -> None:
    """Print one line of JSON at once."""
    print(json.dumps(facts, ensure_ascii=False), flush=True)


def _difference(found: Any, wanted: Any) -> float:
    """Return the largest difference relative to the largest wanted value; infinite where a number is not finite."""
    found, wanted = found.detach().float().cpu(), wanted.detach().float().cpu()
    largest = float((found - wanted).abs().max() / wanted.abs().max())
    return largest if math.isfinite(largest) else math.inf


def matmul(device: Any) -> tuple[float, float]:
    """Return the difference of a matmul on the device from one on the CPU, and the largest that is right."""
    import torch

    torch.manual_seed(0)
    left, right = torch.randn(2, SIZE, SIZE)
    return _difference(left.to(device) @ right.to(device), left @ right), TOLERANCE["fp32"]


def attention(device: Any) -> tuple[float, float]:
    """Return how far bf16 attention and its gradients are from fp32 on the CPU, and how far they may be."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    torch.manual_seed(0)
    values = [torch.randn(SHAPE).bfloat16().float() for _ in range(3)]
    results = []
    for target, dtype in ((device, torch.bfloat16), (torch.device("cpu"), torch.float32)):
        query, key, value = (one.to(target, dtype).requires_grad_() for one in values)
        output = attend(query, key, value, is_causal=True)
        output.float().square().mean().backward()
        results.append([output, query.grad, key.grad, value.grad])
    return max(_difference(here, there) for here, there in zip(*results, strict=True)), TOLERANCE["bf16"]


def all_reduce(device: Any, backend: str, rank: int, size: int, meeting: str) -> tuple[float, float]:
    """Return the difference of a sum over ranks from what it must be, and the largest that is right."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=size)
    part = torch.full((1024,), float(rank + 1), device=device)
    dist.all_reduce(part)
    difference = _difference(part, torch.full((1024,), size * (size + 1) / 2))
    dist.destroy_process_group()
    return difference, TOLERANCE["fp32"]


def _try(name: str, where: str, work: Any) -> None:
    say(check=name, device=where, state="begins")
    began = time.perf_counter()
    difference, limit = work()
    state = "right" if difference <= limit else "wrong"
    say(check=name, device=where, state=state, difference=difference, seconds=time.perf_counter() - began)


def main(kind: str, numbers: list[int], meeting: str) -> None:
    """Try all of `numbers` one by one, then, with a meeting, be one rank of an all-reduce."""
    from swiftlet.device.spec import open_device

    for number in numbers:
        where = f"{kind} {number}"
        say(check="open", device=where, state="begins")
        device = open_device(kind, local_rank=number, environ=os.environ)
        target = device.torch_device
        _try("matmul", where, lambda target=target: matmul(target))
        if "bf16" in device.dtypes:
            _try("bf16 attention", where, lambda target=target: attention(target))
        else:
            say(check="bf16 attention", device=where, state="left out", reason=f"{device.name} has no bf16")
    if meeting:
        rank, size, number = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        device = open_device(kind, local_rank=number, environ=os.environ)
        work = lambda: all_reduce(device.torch_device, device.backend, rank, size, meeting)  # noqa: E731
        _try("all-reduce", f"{kind} {number}", work)


if __name__ == "__main__":
    main(sys.argv[1], [int(word) for word in sys.argv[2].split(",") if word], sys.argv[3])
