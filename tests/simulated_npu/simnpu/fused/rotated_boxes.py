"""Boxes that stand at an angle in degrees: their overlaps, suppression of neighbours, and encodings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simnpu.fused.kernels import check, kernel

Point = tuple[float, float]
CENTRES, CORNERS = 0, 1  # values of npu_nms_rotated's mode


def outline(box: list[float], is_corners: bool) -> list[Point]:
    """Corners, in one order of turning, of a box given by its centre and size, or by corners before it is turned."""
    one, other, third, fourth, angle = box
    if is_corners:
        x, y, width, height = (one + third) / 2, (other + fourth) / 2, third - one, fourth - other
    else:
        x, y, width, height = one, other, third, fourth
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    halves = [
        (-width / 2, -height / 2),
        (width / 2, -height / 2),
        (width / 2, height / 2),
        (-width / 2, height / 2),
    ]
    return [(x + a * cosine - b * sine, y + a * sine + b * cosine) for a, b in halves]


def side(a: Point, b: Point, point: Point) -> float:
    """Positive on the inner side of the line from a to b."""
    return (b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0])


def cut(shape: list[Point], a: Point, b: Point) -> list[Point]:
    """The part of a convex shape on the inner side of a line."""
    found: list[Point] = []
    for here, there in zip(shape, shape[1:] + shape[:1], strict=True):
        at, to = side(a, b, here), side(a, b, there)
        if at >= 0:
            found.append(here)
        if at * to < 0:
            share = at / (at - to)
            found.append((here[0] + share * (there[0] - here[0]), here[1] + share * (there[1] - here[1])))
    return found


def area(shape: list[Point]) -> float:
    following = shape[1:] + shape[:1]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(shape, following, strict=True))) / 2


def shared_area(one: list[Point], other: list[Point]) -> float:
    """Of two boxes by their corners."""
    for a, b in zip(other, other[1:] + other[:1], strict=True):
        one = cut(one, a, b)
    return area(one)


def overlap(one: list[Point], other: list[Point], mode: int) -> float:
    """The shared area over that of both, or with mode 1 over that of the first."""
    shared, own = shared_area(one, other), area(one)
    whole = own if mode == 1 else own + area(other) - shared
    return shared / whole if whole > 0 else 0.0


def outlines(boxes: Tensor, is_corners: bool) -> list[list[list[Point]]]:
    """Of boxes [B, N, 5]."""
    check(
        boxes.dim() == 3 and boxes.shape[-1] == 5,
        f"rotated boxes must be [B, N, 5], got {tuple(boxes.shape)}",
    )
    return [[outline(box, is_corners) for box in sample] for sample in boxes.double().tolist()]


@kernel("npu_rotated_overlaps")
def rotated_overlaps(input: Tensor, query_boxes: Tensor, trans: bool) -> Tensor:
    """Shared areas [B, N, K]; with `trans` the boxes are given by corners."""
    pairs = zip(outlines(input, trans), outlines(query_boxes, trans), strict=True)
    found = [[[shared_area(one, other) for other in others] for one in ones] for ones, others in pairs]
    return torch.tensor(found).view(*input.shape[:2], -1).to(input.dtype)


@kernel("npu_rotated_iou")
def rotated_iou(input: Tensor, query_boxes: Tensor, trans: bool, mode: int, is_cross: bool) -> Tensor:
    """[B, N, K], or [B, N] of partners where `is_cross` is off."""
    pairs = zip(outlines(input, trans), outlines(query_boxes, trans), strict=True)
    if not is_cross:
        one_each = [[overlap(*boxes, mode) for boxes in zip(*pair, strict=True)] for pair in pairs]
        return torch.tensor(one_each).view(input.shape[:2]).to(input.dtype)
    found = [[[overlap(one, other, mode) for other in others] for one in ones] for ones, others in pairs]
    return torch.tensor(found).view(*input.shape[:2], -1).to(input.dtype)


@kernel("npu_nms_rotated")
def nms_rotated(
    input: Tensor,
    scores: Tensor,
    iou_threshold: float,
    scores_threshold: float,
    max_output_size: int,
    mode: int,
) -> tuple[Tensor, Tensor]:
    """Indices by falling score of boxes [N, 5] that share too little with any before them, and their number."""
    check(mode in (CENTRES, CORNERS), f"npu_nms_rotated: mode {mode} must be 0 or 1")
    limit = max_output_size if max_output_size > 0 else len(input)
    shapes = outlines(input[None], mode == CORNERS)[0]
    kept: list[int] = []
    for box in scores.argsort(descending=True, stable=True).tolist():
        is_apart = all(overlap(shapes[box], shapes[other], 0) <= iou_threshold for other in kept)
        if len(kept) < limit and scores[box] > scores_threshold and is_apart:
            kept.append(box)
    return torch.tensor(kept, dtype=torch.int32), torch.tensor([len(kept)], dtype=torch.int32)


def centres_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of [B, 5, N] with two corners and an angle: centres and sizes, [B, 2, N], and the angle's tangent, [B, 1, N]."""
    one, other, angle = boxes.float().split((2, 2, 1), 1)
    return (one + other) / 2, other - one, torch.deg2rad(angle).tan()


@kernel("npu_rotated_box_encode")
def rotated_box_encode(input: Tensor, gt_bboxes: Tensor, weight: Tensor) -> Tensor:
    """True boxes against anchors: moves in sizes of the anchor, logarithms of sizes, differences of tangents."""
    centre, size, turn = centres_and_sizes(input)
    true_centre, true_size, true_turn = centres_and_sizes(gt_bboxes)
    deltas = torch.cat(((true_centre - centre) / size, (true_size / size).log(), true_turn - turn), 1)
    return (deltas * weight.float().view(-1, 1)).to(input.dtype)


@kernel("npu_rotated_box_decode")
def rotated_box_decode(input: Tensor, deltas: Tensor, weight: Tensor) -> Tensor:
    centre, size, turn = centres_and_sizes(input)
    move, growth, turned = (deltas.float() / weight.float().view(-1, 1)).split((2, 2, 1), 1)
    centre, half = centre + move * size, growth.exp() * size / 2
    return torch.cat((centre - half, centre + half, torch.rad2deg((turn + turned).atan())), 1).to(input.dtype)
