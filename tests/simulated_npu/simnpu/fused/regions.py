"""Regions of pictures and anchors of detectors: pooling, choosing, and matching with true boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simnpu.fused.boxes import survivors
from simnpu.fused.kernels import check, gradients, kernel
from simnpu.fused.random import next_seed


def cells(start: float, end: float, count: int, size: int) -> list[tuple[int, int]]:
    """Pixels of each of `count` cells between two edges, within a picture; a region is a tenth of a pixel at least."""
    width = max(end - start, 0.1) / count
    edges = [(math.floor(i * width + start), math.ceil((i + 1) * width + start)) for i in range(count)]
    return [(min(max(low, 0), size), min(max(high, 0), size)) for low, high in edges]


@kernel("npu_ps_roi_pooling")
def ps_roi_pooling(
    input: Tensor, rois: Tensor, spatial_scale: float, group_size: int, output_dim: int
) -> Tensor:
    """Means of the cells of regions [B, (picture, corners), N], each cell from a channel of its own."""
    channels = output_dim * group_size**2
    check(input.shape[1] == channels, f"npu_ps_roi_pooling needs {channels} channels, got {input.shape[1]}")
    maps = input.float().view(input.shape[0], output_dim, group_size, group_size, *input.shape[2:])
    pooled = []
    for number, *corners in rois.float().transpose(1, 2).flatten(0, 1).tolist():
        left, top, right, bottom = (round(c + (i > 1)) * spatial_scale for i, c in enumerate(corners))
        rows = cells(top, bottom, group_size, input.shape[2])
        columns = cells(left, right, group_size, input.shape[3])
        for i, (up, down) in enumerate(rows):
            for j, (near, far) in enumerate(columns):
                cell = maps[int(number), :, i, j, up:down, near:far]
                pooled.append(cell.mean((1, 2)) if cell.numel() else cell.new_zeros(output_dim))
    shape = (-1, group_size, group_size, output_dim)
    return torch.stack(pooled).view(shape).permute(0, 3, 1, 2).contiguous().to(input.dtype)


@kernel("npu_ps_roi_pooling_backward")
def ps_roi_pooling_backward(
    output_grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    group_size: int,
    output_dim: int,
    input_size: list[int],
) -> Tensor:
    """The gradient of pictures whose height and width `input_size` gives."""

    def forward(pictures: Tensor) -> Tensor:
        return ps_roi_pooling(pictures, rois, spatial_scale, group_size, output_dim)

    pictures = output_grad.new_zeros(rois.shape[0], output_dim * group_size**2, *input_size[-2:])
    return gradients(forward, (pictures,), (output_grad,))[0]


@kernel("npu_grid_assign_positive")
def grid_assign_positive(
    input: Tensor, overlaps: Tensor, box_responsible_flags: Tensor, max_overlaps: Tensor, argmax_overlaps: Tensor,
    gt_max_overlaps: Tensor, gt_argmax_overlaps: Tensor, num_gts: int, pos_iou_thr: float, min_pos_iou: float,
    gt_max_assign_all: bool,
) -> Tensor:  # fmt: skip
    """The number from 1 of the true box that an anchor gets: its best one, and then each true box its best anchors."""
    found, responsible = input.clone(), box_responsible_flags.bool()
    positive = (max_overlaps > pos_iou_thr) & responsible
    found[positive] = argmax_overlaps[positive].to(found.dtype) + 1
    for truth in range(min(num_gts, overlaps.shape[0])):
        if gt_max_overlaps[truth] <= min_pos_iou:
            continue
        best = int(gt_argmax_overlaps[truth])
        if gt_max_assign_all:
            found[(overlaps[truth] == gt_max_overlaps[truth]) & responsible] = truth + 1
        elif responsible[best]:
            found[best] = truth + 1
    return found


@kernel("npu_yolo_boxes_encode")
def yolo_boxes_encode(input: Tensor, gt_bboxes: Tensor, stride: Tensor, performance_mode: bool) -> Tensor:
    """Where the true middle lies in the cell of the anchor's, and logarithms of the sizes' ratios."""
    small = 1e-6
    anchors, truths = input.float(), gt_bboxes.float()
    apart = ((truths[:, :2] + truths[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2
    places = (apart / stride.float()[:, None] + 0.5).clamp(small, 1 - small)
    sizes = (truths[:, 2:] - truths[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    return torch.cat((places, sizes.clamp(min=small).log()), 1).to(input.dtype)


@kernel("npu_random_choice_with_mask")
def random_choice_with_mask(x: Tensor, count: int, seed: int, seed2: int) -> tuple[Tensor, Tensor]:
    """Places of `count` true elements in their order, zeros where there are fewer, and which of them count."""
    places = x.nonzero()
    if len(places) > count:
        drawn = (seed, seed2) if seed or seed2 else next_seed()
        generator = torch.Generator().manual_seed((drawn[0] * 0x9E3779B97F4A7C15 + drawn[1]) % 2**63)
        places = places[torch.randperm(len(places), generator=generator)[:count].sort().values]
    found = torch.zeros(count, x.dim(), dtype=torch.int32)
    found[: len(places)] = places.int()
    return found, torch.arange(count) < len(places)


@kernel("npu_sub_sample")
def sub_sample(input: Tensor, per_images: int, positive_fraction: float) -> Tensor:
    """Keeps so many ones and fills up with zeros, drawn at random; all others become -1."""
    order = torch.rand(input.numel(), generator=torch.Generator().manual_seed(sum(next_seed()))).argsort()
    kept, left = torch.full_like(input, -1), per_images
    for label, most in ((1, int(per_images * positive_fraction)), (0, per_images)):
        chosen = order[input[order] == label][: min(most, left)]
        kept[chosen] = label
        left -= len(chosen)
    return kept


def batch_of_one(
    boxes: Tensor, scores: Tensor, lowest: float, threshold: float, limit: int
) -> list[tuple[float, int, Tensor]]:
    """Score, class and box of what survives among boxes [N, 1 or C, 4] with scores [N, C]."""
    found = []
    for kind in range(scores.shape[1]):
        own, column = boxes[:, min(kind, boxes.shape[1] - 1)], scores[:, kind]
        order = [i for i in column.argsort(descending=True, stable=True).tolist() if column[i] > lowest]
        found += [(float(column[i]), kind, own[i]) for i in survivors(own, order, threshold, limit)]
    return sorted(found, key=lambda one: -one[0])


@kernel("npu_batch_nms")
def batch_nms(
    input: Tensor,
    scores: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_size_per_class: int,
    max_total_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best boxes of each picture [B, N, 1 or C, 4], their scores and classes, zeros behind them; their numbers."""
    shape = (input.shape[0], max_total_size)
    boxes, best, kinds = input.new_zeros(*shape, 4), input.new_zeros(shape), input.new_zeros(shape)
    counts = torch.zeros(shape[0], dtype=torch.int32)
    for picture in range(shape[0]):
        how = (score_threshold, iou_threshold, max_size_per_class)
        found = batch_of_one(input[picture].float(), scores[picture].float(), *how)[:max_total_size]
        counts[picture] = len(found)
        for place, (score, kind, box) in enumerate(found):
            best[picture, place], kinds[picture, place], boxes[picture, place] = (
                score,
                kind,
                box.to(input.dtype),
            )
    return boxes, best, kinds, counts
