"""Boxes of detectors: overlaps, encodings, suppression of neighbours and pooling of regions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simnpu.fused.kernels import check, gradients, kernel

SMALL = 1e-7


def areas(corners: Tensor) -> Tensor:
    return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])


def intersections(one: Tensor, other: Tensor) -> Tensor:
    """Areas that boxes given by their corners share; shapes broadcast."""
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


@kernel("npu_iou", "npu_ptiou")
def iou(bboxes: Tensor, gtboxes: Tensor, mode: int) -> Tensor:
    """A row for each of gtboxes; mode 1 divides by the area of gtboxes alone."""
    boxes, truths = bboxes.float(), gtboxes.float()[:, None]
    shared = intersections(boxes, truths)
    whole = areas(truths) if mode == 1 else areas(truths) + areas(boxes) - shared
    return (shared / (whole + SMALL)).to(bboxes.dtype)


def corners_of(boxes: Tensor, trans: bool) -> Tensor:
    """Corners of boxes [4, n], which are centres and sizes with `trans`."""
    rows = boxes.float().t()
    if not trans:
        return rows
    return torch.cat((rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2), 1)


def paired(kind: str, input: Tensor, gtboxes: Tensor, trans: bool, is_cross: bool, mode: int) -> Tensor:
    """Overlap of each box with its partner [n], less what the kind takes off for their distance and shape."""
    check(not is_cross and mode == 0, f"npu_{kind} supports only is_cross=False and mode=0")
    check(input.shape == gtboxes.shape and input.shape[0] == 4, f"npu_{kind} needs two tensors [4, n]")
    small = 1e-10
    one, other = corners_of(input, trans), corners_of(gtboxes, trans)
    shared = intersections(one, other)
    union = areas(one) + areas(other) - shared + small
    hull = torch.cat((torch.minimum(one[:, :2], other[:, :2]), torch.maximum(one[:, 2:], other[:, 2:])), 1)
    overlap = shared / union
    if kind == "giou":
        around = areas(hull) + small
        return overlap - (around - union) / around
    apart = ((one[:, :2] + one[:, 2:] - other[:, :2] - other[:, 2:]) / 2).square().sum(1)
    distance = apart / ((hull[:, 2:] - hull[:, :2]).square().sum(1) + small)
    if kind == "diou":
        return overlap - distance
    shape = 4 / math.pi**2 * angles(one, other).square()
    return overlap - distance - shape * shape / (1 + small - overlap + shape)


def angles(one: Tensor, other: Tensor) -> Tensor:
    """How the diagonals of the other boxes differ from those of the first."""
    first, second = (torch.atan((box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1])) for box in (one, other))
    return second - first


@kernel("npu_giou")
def giou(input: Tensor, gtboxes: Tensor, trans: bool, is_cross: bool, mode: int) -> Tensor:
    return paired("giou", input, gtboxes, trans, is_cross, mode).unsqueeze(1).to(input.dtype)


@kernel("npu_diou")
def diou(input: Tensor, gtboxes: Tensor, trans: bool, is_cross: bool, mode: int) -> Tensor:
    return paired("diou", input, gtboxes, trans, is_cross, mode).unsqueeze(0).to(input.dtype)


@kernel("_npu_ciou")
def ciou(
    input: Tensor, gtboxes: Tensor, trans: bool, is_cross: bool, mode: int, atan_sub_flag: bool
) -> tuple[Tensor, Tensor]:
    """The second result is what backward need not compute again, where `atan_sub_flag` asks for it."""
    found = paired("ciou", input, gtboxes, trans, is_cross, mode).unsqueeze(0)
    turned = angles(corners_of(input, trans), corners_of(gtboxes, trans)).unsqueeze(0)
    return found.to(input.dtype), (turned if atan_sub_flag else torch.zeros_like(turned)).to(input.dtype)


def paired_gradients(kind: str, grad: Tensor, bboxes: Tensor, gtboxes: Tensor, *how: bool | int) -> tuple:
    def forward(one: Tensor, other: Tensor) -> Tensor:
        return paired(kind, one, other, *how).to(bboxes.dtype)

    return gradients(forward, (bboxes, gtboxes), (grad.flatten(),))


@kernel("npu_giou_backward")
def giou_backward(
    grad: Tensor, bboxes: Tensor, gtboxes: Tensor, trans: bool, is_cross: bool, mode: int
) -> tuple[Tensor, Tensor]:
    return paired_gradients("giou", grad, bboxes, gtboxes, trans, is_cross, mode)


@kernel("npu_diou_backward")
def diou_backward(
    grad: Tensor, bboxes: Tensor, gtboxes: Tensor, trans: bool, is_cross: bool, mode: int
) -> tuple[Tensor, Tensor]:
    return paired_gradients("diou", grad, bboxes, gtboxes, trans, is_cross, mode)


@kernel("npu_ciou_backward")
def ciou_backward(
    grad: Tensor,
    bboxes: Tensor,
    gtboxes: Tensor,
    atan_sub: Tensor | None,
    trans: bool,
    is_cross: bool,
    mode: int,
) -> tuple[Tensor, Tensor]:
    """`atan_sub` only saves work."""
    return paired_gradients("ciou", grad, bboxes, gtboxes, trans, is_cross, mode)


def middle_and_size(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Of boxes whose last pixel belongs to them."""
    return (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2] + 1


@kernel("npu_bounding_box_encode")
def bounding_box_encode(
    anchor_box: Tensor, ground_truth_box: Tensor, means0: float, means1: float, means2: float, means3: float,
    stds0: float, stds1: float, stds2: float, stds3: float,
) -> Tensor:  # fmt: skip
    """Shifts in sizes of the anchor, and logarithms of the sizes' ratios, normalised."""
    (at, size), (to, wanted) = middle_and_size(anchor_box.float()), middle_and_size(ground_truth_box.float())
    size = size + SMALL
    deltas = torch.cat(((to - at) / size, torch.log(wanted.abs() / size.abs())), -1)
    means, stds = torch.tensor([means0, means1, means2, means3]), torch.tensor([stds0, stds1, stds2, stds3])
    return ((deltas - means) / stds).to(anchor_box.dtype)


@kernel("npu_bounding_box_decode")
def bounding_box_decode(
    rois: Tensor, deltas: Tensor, means0: float, means1: float, means2: float, means3: float, stds0: float,
    stds1: float, stds2: float, stds3: float, max_shape: list[int], wh_ratio_clip: float,
) -> Tensor:  # fmt: skip
    """Boxes inside a picture of height and width `max_shape`; a row of deltas may hold those of several classes."""
    means, stds = torch.tensor([means0, means1, means2, means3]), torch.tensor([stds0, stds1, stds2, stds3])
    changes = deltas.float().view(len(rois), -1, 4) * stds + means
    at, size = (values.unsqueeze(1) for values in middle_and_size(rois.float()))
    most = abs(math.log(wh_ratio_clip))
    half = size * changes[..., 2:].clamp(-most, most).exp() / 2
    middle = at + size * changes[..., :2]
    height, width = max_shape
    limit = torch.tensor([width, height, width, height]) - 1
    boxes = torch.cat((middle - half + 0.5, middle + half - 0.5), -1)
    return torch.minimum(boxes.clamp(min=0), limit).view_as(deltas).to(deltas.dtype)


@kernel("npu_anchor_response_flags")
def anchor_response_flags(
    input: Tensor, featmap_size: list[int], stride: list[int], num_base_anchors: int
) -> Tensor:
    """1 for the anchors of the cells in which boxes have their middle."""
    wide = input.float()
    column, row = (((wide[:, i] + wide[:, i + 2]) / 2 / stride[i]).floor().long() for i in (0, 1))
    flags = torch.zeros(featmap_size[0] * featmap_size[1], dtype=torch.uint8)
    flags[row * featmap_size[1] + column] = 1
    return flags.repeat_interleave(num_base_anchors)


def survivors(boxes: Tensor, order: list[int], threshold: float, limit: int) -> list[int]:
    """Boxes in this order, without those that share too much with one before them."""
    overlaps = iou(boxes, boxes, 0) if len(boxes) else torch.zeros(0, 0)
    kept: list[int] = []
    for box in order:
        if len(kept) < limit and not any(overlaps[box, other] > threshold for other in kept):
            kept.append(box)
    return kept


@kernel("npu_nms_v4")
def nms(
    input: Tensor,
    scores: Tensor,
    max_output_size: int,
    iou_threshold: Tensor,
    scores_threshold: Tensor,
    pad_to_max_output_size: bool,
) -> tuple[Tensor, Tensor]:
    """Indices by falling score, and how many of them count."""
    lowest, limit = float(scores_threshold), int(max_output_size)
    order = [i for i in scores.argsort(descending=True, stable=True).tolist() if scores[i] > lowest]
    kept = survivors(input.float(), order, float(iou_threshold), limit)
    rows = kept + [0] * (limit - len(kept) if pad_to_max_output_size else 0)
    return torch.tensor(rows, dtype=torch.int32), torch.tensor(len(kept), dtype=torch.int32)


@kernel("npu_nms_with_mask")
def nms_with_mask(input: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """All boxes [n, 5], which come by falling score, their indices, and 1 where one survives."""
    count = len(input)
    mask = torch.zeros(count, dtype=torch.uint8)
    mask[survivors(input[:, :4].float(), list(range(count)), iou_threshold, count)] = 1
    return input.clone(), torch.arange(count, dtype=torch.int32), mask


def sample(picture: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Values [C, rows, columns] between the pixels of a picture [C, H, W]; nothing beyond its edge of one pixel."""
    for dim, places in ((1, rows), (2, columns)):
        last = picture.shape[dim] - 1
        inside = ((places >= -1) & (places <= last + 1)).float()
        places = places.clamp(0, last)
        low = places.floor().long()
        share = (places - low).view(-1, *[1] * (2 - dim))
        inside = inside.view_as(share)
        lower, upper = (picture.index_select(dim, index) for index in (low, (low + 1).clamp(max=last)))
        picture = (lower * (1 - share) + upper * share) * inside
    return picture


@kernel("npu_roi_align")
def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sample_num: int,
    roi_end_mode: int,
) -> Tensor:
    """Means of samples in the cells of regions [picture, corners]; mode 1 counts the last pixel, 2 shifts by a half."""
    pooled = []
    for number, *corners in rois.float().tolist():
        if roi_end_mode == 1:
            corners = [*corners[:2], *(corner + 1 for corner in corners[2:])]
        left, top, right, bottom = (c * spatial_scale - (0.5 if roi_end_mode == 2 else 0) for c in corners)
        places = []
        for start, end, cells in ((top, bottom, pooled_height), (left, right, pooled_width)):
            extent = end - start if roi_end_mode == 2 else max(end - start, 1)
            samples = sample_num if sample_num > 0 else max(math.ceil(extent / cells), 1)
            steps = torch.arange(cells * samples) + 0.5
            places.append(start + steps * extent / (cells * samples))
        values = sample(input[int(number)].float(), *places)
        shape = (
            -1,
            pooled_height,
            len(places[0]) // pooled_height,
            pooled_width,
            len(places[1]) // pooled_width,
        )
        pooled.append(values.view(shape).mean((2, 4)))
    return torch.stack(pooled).to(input.dtype)


@kernel("npu_roi_alignbk")
def roi_align_backward(
    input: Tensor, rois: Tensor, xdiff_shape: list[int], pooled_width: int, pooled_height: int,
    spatial_scale: float, sample_num: int, roi_end_mode: int | None,
) -> Tensor:  # fmt: skip
    """`input` is the gradient of what npu_roi_align returned."""

    def forward(pictures: Tensor) -> Tensor:
        how = (spatial_scale, pooled_height, pooled_width, sample_num, roi_end_mode or 0)
        return roi_align(pictures, rois, *how)

    return gradients(forward, (input.new_zeros(xdiff_shape),), (input,))[0]
