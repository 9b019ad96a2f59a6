"""The trust gate: a fused operator runs only after it gave the right answer, and gradient, on the run's own shapes.

Right is what the definition gives in fp32 on the CPU. An operator that differs, or fails, is replaced by the plain one
with one line of the log. What was found is remembered for the same device, versions, shapes and type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from swiftlet.device.kernels import PLAIN, REFERENCE, AttentionRules, Kernel, RowDropout, Rows
from swiftlet.device.trials import Trials, read_trials, write_trials
from swiftlet.log import info

if TYPE_CHECKING:
    from swiftlet.device.spec import Device

# Largest error of a token, as a share of a typical token's length. Rounding to bf16 (2^-9 a number), fp16 (2^-12) and
# fp32 (2^-24, summed up to a thousand times, by units that may round to 19 bits) stays below; a wrong mask, scale or
# boundary does not.
TOLERANCES = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 2e-3}
MOST_OF_ROUNDING = 4  # beyond this multiple no rounding of the plain operator is an excuse
LONGEST_TRY = 512  # tokens of one sample, and
MOST_TOKENS = 1536  # of all samples of a trial: the definition needs their square
SEED = 20_240_501
# Of an operator, on any device.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError)


class Case(NamedTuple):
    """One call of an operator: the shapes of its tensors, which of them have a gradient, and its other arguments."""

    operator: str
    shapes: tuple[tuple[int, ...], ...]
    arguments: tuple[Any, ...] = ()
    with_gradient: int = 3  # so many of the first tensors


class Verdict(NamedTuple):
    """What came of a trial: the largest error of output and gradients, or why there is none."""

    error: float
    tolerance: float
    failure: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the operator may be used."""
        return not self.failure and self.error <= self.tolerance

    def __str__(self) -> str:
        return self.failure or f"error {self.error:.1e}, at most {self.tolerance:.0e} is rounding"


def trial_lengths(cu_seqlens: Sequence[int]) -> list[int]:
    """Return boundaries like those of the run, cut to what the definition can compute, with a sample of one token."""
    ends = [0, 1]
    for length in (end - start for start, end in pairwise(cu_seqlens)):
        length = min(length, LONGEST_TRY, MOST_TOKENS - ends[-1])
        if length > 0:
            ends.append(ends[-1] + length)
    return ends


def attention_case(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    cu_seqlens: Sequence[int],
    rules: AttentionRules,
) -> Case:
    """Return the attention of a model on boundaries like those of a run."""
    ends = trial_lengths(cu_seqlens)
    tokens = ends[-1]
    if rules.window is not None and rules.window > LONGEST_TRY // 4:
        # in a longer one a token too many would be lost in the rounding
        rules = rules._replace(window=LONGEST_TRY // 8)
    shapes = (
        (num_heads, tokens, head_dim),
        (num_kv_heads, tokens, head_dim),
        (num_kv_heads, tokens, head_dim),
    )
    return Case("attention", shapes, (ends, rules))


def rms_norm_case(width: int, eps: float, tokens: int = 257) -> Case:
    """Return the norm of vectors of a width."""
    return Case("rms_norm", ((1, tokens, width), (width,)), (eps,), with_gradient=2)


def rotary_case(num_heads: int, head_dim: int, tokens: int = 257) -> Case:
    """Return the rotation of one tensor of heads; the angles have no gradient."""
    angles = (1, tokens, head_dim)
    return Case("rotary", ((1, num_heads, tokens, head_dim), angles, angles), with_gradient=1)


def swiglu_case(width: int, tokens: int = 257) -> Case:
    """Return the gate of a feed-forward block."""
    return Case("swiglu", ((1, tokens, width), (1, tokens, width)), with_gradient=2)


def dropout_case(width: int, p: float = 0.1, tokens: int = 257) -> Case:
    """Return the dropout of vectors of a width."""
    return Case("dropout", ((tokens, width),), (p,), with_gradient=0)


def _inputs(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Return random tensors on the CPU, already rounded to the type in which the operator will see them."""
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(shape, generator=generator).to(dtype).float() for shape in case.shapes]


def _call(kernel: Kernel, case: Case, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of one call, fp32 on the CPU."""
    leaves = [
        tensor.detach().clone().requires_grad_(at < case.with_gradient) for at, tensor in enumerate(tensors)
    ]
    out = kernel(*leaves, *case.arguments)
    generator = torch.Generator().manual_seed(SEED + 1)
    direction = torch.randn(out.shape, generator=generator).to(out.dtype).to(out.device)
    out.backward(direction)
    tried = leaves[: case.with_gradient]
    found = [out, *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in tried)]
    return [tensor.detach().float().cpu() for tensor in found]


def largest_error(found: Tensor, right: Tensor) -> float:
    """Return the largest distance of a vector (the last axis) to the right one, over the typical length of one."""
    if found.shape != right.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    typical = right.pow(2).sum(-1).mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return float((found - right).norm(dim=-1).max() / typical)


def try_kernel(
    kernel: Kernel,
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    errors: tuple[type[Exception], ...] = (),
) -> Verdict:
    """Run one operator forward and backward and compare it with its definition.

    Args:
        errors: what operators of this device fail with, beside Python's own.

    Raises:
        torch.OutOfMemoryError: the device has no memory for the trial; that says nothing about the operator.
    """
    tensors = _inputs(case, dtype)
    failures: tuple[type[Exception], ...] = (*FAILURES, *errors)
    try:
        there = [tensor.to(device, dtype) for tensor in tensors]
        if case.operator == "dropout":  # random: no definition says which elements
            return try_dropout(kernel, there[0], *case.arguments)
        found = _call(kernel, case, there)
    except torch.OutOfMemoryError:
        raise
    except failures as reason:
        text = str(reason).strip().splitlines()
        return Verdict(
            float("inf"), 0.0, f"{type(reason).__name__}: {text[0] if text else 'no reason given'}"
        )
    right = _call(REFERENCE[case.operator], case, tensors)
    error = _largest(found, right)
    tolerance = TOLERANCES[dtype]
    if tolerance < error < MOST_OF_ROUNDING * tolerance:  # is it these numbers that round badly?
        plain = _call(PLAIN[case.operator], case, [tensor.to(dtype) for tensor in tensors])
        tolerance = max(tolerance, 2 * _largest(plain, right))
    return Verdict(error, tolerance)


def try_dropout(kernel: Kernel, x: Tensor, p: float) -> Verdict:
    """Return whether an operator drops a share p, the same for the same seed, and keeps the other elements.

    One that draws by rows is tried that way too: a row has its mask wherever it stands. The share may be off by six
    standard deviations of a binomial count.
    """
    x = torch.where(x == 0, torch.ones_like(x), x)
    verdict = _try_masks(kernel, x, p, (SEED, SEED + 1))
    if not isinstance(kernel, RowDropout) or not verdict.is_good:
        return verdict
    generator = torch.Generator().manual_seed(SEED)
    keys_T = torch.randint(-(2**63), 2**63 - 1, (len(x),), generator=generator).to(x.device)
    verdict = _try_masks(kernel.by_rows, x, p, (Rows(keys_T, 0), Rows(keys_T, 1)))
    kept = kernel.by_rows(x, p, Rows(keys_T, 0), out=torch.empty_like(x))
    later = kernel.by_rows(x[1:].clone(), p, Rows(keys_T[1:], 0))
    if verdict.is_good and not torch.equal(later, kept[1:]):
        return verdict._replace(failure="a row in another place drops different elements")
    return verdict


def _try_masks(kernel: Kernel, x: Tensor, p: float, sources: tuple[Any, Any]) -> Verdict:
    """Return whether masks are as they should be; the two sources (seeds, numbers of rows) differ."""
    one, two = sources
    kept, again, other = (kernel(x, p, source, out=torch.empty_like(x)) for source in (one, one, two))
    added = kernel(x, p, one, out=torch.ones_like(x), is_added=True)
    is_dropped = kept == 0
    share = float(is_dropped.float().mean())
    slack = 6 * (p * (1 - p) / x.numel()) ** 0.5
    checks = {
        "it changes kept elements": torch.equal(kept, x.masked_fill(is_dropped, 0)),
        "one seed drops different elements": torch.equal(kept, again),
        "two seeds drop the same elements": not torch.equal(kept, other),
        "adding gives another sum": torch.equal(added, torch.ones_like(x).add_(kept)),
        "in place it drops different elements": torch.equal(kernel(x.clone(), p, one), kept),
    }
    failure = next((text for text, is_good in checks.items() if not is_good), "")
    return Verdict(abs(share - p), slack, failure)


def _largest(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return max(largest_error(one, other) for one, other in zip(found, right, strict=True))


def _key(device: Device, kernel: Kernel, case: Case, dtype: torch.dtype) -> str:
    from swiftlet import __version__

    name = f"{getattr(kernel, '__module__', '')}.{getattr(kernel, '__qualname__', type(kernel).__qualname__)}"
    facts = [__version__, device.kind, device.name, device.version, name, str(dtype), repr(case)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def trusted_kernels(
    device: Device,
    cases: Sequence[Case],
    dtype: torch.dtype,
    *,
    memory: Path | None = None,
    report: Callable[[str], None] = info,
) -> dict[str, Kernel]:
    """Return the operators to use by name: the device's fused ones that passed all their cases, else the plain ones.

    An operator without a case is not tried and stays plain. An operator that a device does not have is left out.

    Args:
        memory: file of earlier results; None to try everything.
        report: takes one line for each operator that is replaced.
    """
    known = read_trials(memory) if memory is not None else {}
    chosen: dict[str, Kernel] = {}
    for operator, kernel in device.kernels.items():
        own = [case for case in cases if case.operator == operator]
        verdicts = [_verdict(device, kernel, case, dtype, known) for case in own]
        bad = next((verdict for verdict in verdicts if not verdict.is_good), None)
        if own and bad is None:
            chosen[operator] = kernel
        else:
            chosen[operator] = PLAIN[operator]
            if bad is not None:
                report(f"the fused {operator} of {device.name} is replaced by the plain one: {bad}")
    if memory is not None:
        write_trials(memory, known)
    return chosen


def _verdict(device: Device, kernel: Kernel, case: Case, dtype: torch.dtype, known: Trials) -> Verdict:
    key = _key(device, kernel, case, dtype)
    if key in known:
        return Verdict(*known[key])
    verdict = try_kernel(kernel, case, dtype, device.torch_device, device.kernel_errors)
    if not verdict.failure:  # a failure may be of the moment: it is tried again
        known[key] = (verdict.error, verdict.tolerance)
    return verdict


def without(kernels: Mapping[str, Kernel], *, attention: bool, others: bool) -> dict[str, Kernel]:
    """Return the operators that the user left on: `attention`, and all others."""
    return {
        name: kernel for name, kernel in kernels.items() if (attention if name == "attention" else others)
    }
