"""Passes that are recorded once and played again: for models whose steps wait for the host to launch operators.

A recording has fixed shapes and addresses. So the rows of a micro-batch are rounded up, by a sixteenth on average, and
what differs between two of one shape (tokens, boundaries, targets, the seed of masks) is written to memory that the
recording reads. Rows that were added attend to themselves, count for no loss and pass no gradient on.

The first micro-batch of a shape runs as any other does, over the rounded rows; at the second the pass is recorded,
forward and backward. The third is computed both ways: a recording is played alone from then on only if it gave the
gradient of a micro-batch that it was not recorded with. What a pass gives is the gradient of its summed loss; the
backward pass of the step multiplies it.

Shapes: T tokens with those added, N labelled positions, W rows of the last layer, S boundaries of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swiftlet.device.kernels import DeviceBoundaries
from swiftlet.device.spec import Capture
from swiftlet.device.transfer import send
from swiftlet.errors import first_line
from swiftlet.models.rounding import Tokens
from swiftlet.models.row_keys import signed

MOST_GRAPHS = 24  # a recording of a small model takes about 10 MB beside the memory that all of them share
LEAST_ROUNDING, SAMPLES = 64, 16
TOLERANCE = (
    2e-2  # of the gradient's length; operators that add in any order differ by less, a wrong mask by more
)


class Shape(NamedTuple):
    """What micro-batches of one recording have in common."""

    num_tokens: int
    num_wanted: int
    num_samples: int
    longest: int


class Pass(NamedTuple):
    """What a pass reads: memory of the device that keeps its place.

    `counted_W` is 1 for rows whose loss counts and 0 for those added; `targets_W` is 0 there.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    boundaries: DeviceBoundaries
    wanted_W: Tensor
    targets_W: Tensor
    counted_W: Tensor
    seed: Tensor


def rounded_up(number: int) -> int:
    """Return a number of rows rounded up to a multiple of an eighth to a sixteenth of it."""
    multiple = max(LEAST_ROUNDING, 2 ** (number.bit_length() - 4))
    return -(-number // multiple) * multiple


def shape_of(num_tokens: int, num_labels: int, cu_seqlens: list[int]) -> Shape:
    """Return the shape in which a micro-batch is computed."""
    whole = rounded_up(num_tokens)
    part = max(LEAST_ROUNDING, whole // 8)
    longest = max(*(end - start for start, end in pairwise(cu_seqlens)), whole - num_tokens)
    return Shape(
        whole,
        min(whole, -(-num_labels // part) * part),
        -(-len(cu_seqlens) // SAMPLES) * SAMPLES,
        2 ** (longest - 1).bit_length(),
    )


def new_pass(shape: Shape, device: torch.device) -> Pass:
    """Return memory for micro-batches of a shape."""

    def zeros(length: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(length, dtype=dtype, device=device)

    boundaries = DeviceBoundaries(zeros(shape.num_samples + 1, torch.int32), shape.longest, shape.num_tokens)
    return Pass(
        zeros(shape.num_tokens),
        zeros(shape.num_tokens),
        boundaries,
        zeros(shape.num_wanted),
        zeros(shape.num_wanted),
        zeros(shape.num_wanted, torch.float32),
        zeros(1),
    )


def fill(to: Pass, tokens: Tokens, seed: int) -> None:
    """Write a micro-batch into the memory of its shape; targets, below 0 where there is none, come from the host."""
    input_ids_T, position_ids_T, cu_seqlens, targets_T, _ = tokens
    num_tokens, num_rows = len(input_ids_T), len(to.input_ids_T)
    for whole_T, given_T in ((to.input_ids_T, input_ids_T), (to.position_ids_T, position_ids_T)):
        whole_T[:num_tokens].copy_(given_T)
        whole_T[num_tokens:].zero_()
    # all of the host in one copy: boundaries with empty samples at their end, rows, targets, which count, the seed
    ends = [*cu_seqlens, *[num_rows] * (len(to.boundaries.on_device) - len(cu_seqlens))]
    targets_T = torch.cat([targets_T, targets_T.new_full((num_rows - num_tokens,), -1)])
    is_wanted = targets_T >= 0
    others = (~is_wanted).nonzero()[:, 0]
    is_wanted[others[: len(to.wanted_W) - (num_rows - len(others))]] = True
    wanted_W = is_wanted.nonzero()[:, 0]  # ascending: they may be all rows, which are in their order too
    targets_W = targets_T[wanted_W]
    parts = [
        torch.tensor(ends),
        wanted_W,
        targets_W.clamp(min=0),
        (targets_W >= 0).long(),
        torch.tensor([signed(seed)]),
    ]
    there = send(torch.cat(parts), input_ids_T.device).split([len(part) for part in parts])
    wanted = to.boundaries.on_device, to.wanted_W, to.targets_W, to.counted_W, to.seed
    for memory, given in zip(wanted, there, strict=True):
        memory.copy_(given)


class _Recording(NamedTuple):
    """What plays a pass, and where it leaves the loss and the number of correct predictions."""

    play: Callable[[], None]
    loss_sum: Tensor
    num_correct: Tensor


class Graphs:
    """The recordings of a model's training passes.

    Args:
        run: the summed loss of a pass, with a gradient, and the number of correct predictions.
        capture: the device's recorder: takes down some work without doing it; returns what does it and what it gives.
        parameters: those that are trained, of one type and device.
        log: gets a line where nothing is recorded any more.
    """

    def __init__(
        self,
        run: Callable[[Pass], tuple[Tensor, Tensor]],
        capture: Capture,
        parameters: Sequence[Tensor],
        log: Callable[[str], object] = lambda message: None,
    ) -> None:
        self.run = run
        self.capture = capture
        self.parameters = parameters
        self.log = log
        self.is_on = True
        self.num_passes = 0
        self._passes: dict[Shape, Pass] = {}
        self._recordings: dict[Shape, _Recording] = {}
        self._trusted: set[Shape] = set()
        first = parameters[0]
        self.gradient = torch.zeros(
            sum(map(Tensor.numel, parameters)), dtype=first.dtype, device=first.device
        )

    def losses(self, tokens: Tokens, num_labels: int, seed: int) -> tuple[Tensor, Tensor] | None:
        """Return the summed loss and the number of correct predictions of a micro-batch; None where it is not for this.

        Where the pass was played, the gradient must be asked for before the next micro-batch.
        """
        shape = shape_of(len(tokens.input_ids_T), num_labels, tokens.cu_seqlens)
        is_known = shape in self._passes
        if not self.is_on or not num_labels or (len(self._passes) == MOST_GRAPHS and not is_known):
            return None
        if not is_known:
            self._passes[shape] = new_pass(shape, tokens.input_ids_T.device)
        reads = self._passes[shape]
        fill(reads, tokens, seed)
        recording = self._recordings.get(shape)
        if recording is None:
            if is_known:
                self._record(shape, reads)
            return self.run(reads)
        self.num_passes += 1
        if shape not in self._trusted:
            loss_sum, num_correct = self._try(shape, reads, recording)
            return _Played.apply(self, loss_sum, num_correct, *self.parameters)
        recording.play()
        return _Played.apply(self, recording.loss_sum, recording.num_correct, *self.parameters)

    def shared(self, whole: Tensor) -> list[Tensor]:
        """Return the part of each parameter in a tensor like `gradient`."""
        parts = whole.split([one.numel() for one in self.parameters])
        return [part.view_as(one) for part, one in zip(parts, self.parameters, strict=True)]

    def _work(self, reads: Pass) -> tuple[Tensor, Tensor]:
        """Make a pass forward and backward; leave its gradient in `gradient`."""
        loss_sum, num_correct = self.run(reads)
        torch._foreach_copy_(
            self.shared(self.gradient), torch.autograd.grad(loss_sum, tuple(self.parameters))
        )
        return loss_sum.detach(), num_correct

    def _record(self, shape: Shape, reads: Pass) -> None:
        try:
            play, places = self.capture(partial(self._work, reads))
        except RuntimeError as error:  # of the device: what cannot be recorded, or too little memory
            # the end of a recording that has failed fails too, which says nothing of the cause
            before = error.__context__
            self._stop(first_line(before if isinstance(before, RuntimeError) else error))
            return
        self._recordings[shape] = _Recording(play, *places)

    def _try(self, shape: Shape, reads: Pass, recording: _Recording) -> tuple[Tensor, Tensor]:
        """Make a pass operator by operator, compare it with what is played, and return what it gave."""
        expected = self._work(reads)
        gradient = self.gradient.clone()
        self.gradient.zero_()  # so that one that does nothing is not taken for right
        recording.play()
        length, error = torch.stack(
            [gradient.norm(), (self.gradient - gradient).norm()]
        ).tolist()  # waits, once
        self.gradient.copy_(gradient)
        if not 0 < length < math.inf:  # nothing to compare with: the next of this shape is tried
            return expected
        if error <= TOLERANCE * length:
            self._trusted.add(shape)
        else:
            self._stop(
                f"played, the gradient of a micro-batch differed by {error / length:.1e} of its length"
            )
        return expected

    def _stop(self, reason: str) -> None:
        self.is_on = False
        self._recordings, self._passes = {}, {}  # and with them the memory that only they use
        self.log(f"passes are not replayed as graphs, each operator is launched by itself: {reason}")


class _Played(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(
        ctx: Any, graphs: Graphs, loss_sum: Tensor, num_correct: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.graphs, ctx.number = graphs, graphs.num_passes
        correct = num_correct.clone()
        ctx.mark_non_differentiable(correct)
        return loss_sum.clone(), correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        graphs = ctx.graphs
        if ctx.number != graphs.num_passes:
            raise RuntimeError(
                "a recorded pass was played again before the gradient of the last one was asked for"
            )
        return (None, None, None, *graphs.shared(graphs.gradient * grad_loss))
