"""Boxes of detectors on simulated NPUs: known values, and gradients by their definitions on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def test_overlaps_have_a_row_for_each_true_box(npu):
    boxes = torch.tensor([[0, 0, 10, 10], [10, 10, 20, 20], [32, 32, 38, 42]]).half().npu()
    truths = torch.tensor([[0, 0, 10, 20], [10, 10, 20, 20]]).half().npu()
    assert_near(npu.npu_iou(boxes, truths), torch.tensor([[0.5, 0, 0], [0, 1, 0]]).half())
    assert_near(npu.npu_ptiou(boxes, truths, 1), torch.tensor([[0.5, 0, 0], [0, 1, 0]]).half())


def giou_of(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """One box against one, as centres and sizes."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = one, other
    low = torch.maximum(ax - aw / 2, bx - bw / 2), torch.maximum(ay - ah / 2, by - bh / 2)
    high = torch.minimum(ax + aw / 2, bx + bw / 2), torch.minimum(ay + ah / 2, by + bh / 2)
    shared = (high[0] - low[0]).clamp(min=0) * (high[1] - low[1]).clamp(min=0)
    union = aw * ah + bw * bh - shared
    wide = torch.maximum(ax + aw / 2, bx + bw / 2) - torch.minimum(ax - aw / 2, bx - bw / 2)
    high = torch.maximum(ay + ah / 2, by + bh / 2) - torch.minimum(ay - ah / 2, by - bh / 2)
    return shared / union - (wide * high - union) / (wide * high)


def test_overlap_with_its_hull_and_its_gradients(npu):
    one, other = torch.rand(4, 6) * 10, torch.rand(4, 6) * 10
    plain = [x.clone().requires_grad_() for x in (one, other)]
    expected = giou_of(*plain)
    expected.square().sum().backward()
    cards = [x.npu().requires_grad_() for x in (one, other)]
    found = npu.npu_giou(*cards, trans=True, is_cross=False, mode=0)
    found.square().sum().backward()
    assert_near(found, expected.detach()[:, None])
    for card, cpu in zip(cards, plain, strict=True):
        assert_near(card.grad, cpu.grad)
    with pytest.raises(RuntimeError, match="npu_giou supports only is_cross=False and mode=0"):
        npu.npu_giou(*cards, trans=True, is_cross=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("npu_diou", 1 / 7 - 2 / 18), ("npu_ciou", 1 / 7 - 2 / 18)],  # squares have the same angle
)
def test_overlap_less_distance(npu, name, expected):
    one = torch.tensor([[0.0], [0.0], [2.0], [2.0]]).npu().requires_grad_()
    other = torch.tensor([[1.0], [1.0], [3.0], [3.0]]).npu()
    found = getattr(npu, name)(one, other, trans=False, is_cross=False, mode=0)
    assert_near(found.detach(), torch.tensor([[expected]]))
    found.sum().backward()
    assert one.grad.abs().sum() > 0


def test_boxes_are_encoded_and_come_back(npu):
    anchors = torch.tensor([[1.0, 2, 3, 4], [3, 4, 5, 6]])
    truths = torch.tensor([[5.0, 6, 7, 8], [7, 8, 9, 6]])
    codes = npu.npu_bounding_box_encode(anchors.npu(), truths.npu(), 0, 0, 0, 0, 0.1, 0.1, 0.2, 0.2)
    assert_near(codes, torch.tensor([[13.3333, 13.3333, 0, 0], [13.3333, 6.6667, 0, -5.4931]]))
    how = (0, 0, 0, 0, 0.1, 0.1, 0.2, 0.2, (20, 20), 0.01)
    assert_near(npu.npu_bounding_box_decode(anchors.npu(), codes, *how)[0], truths[0])
    far = npu.npu_bounding_box_decode(anchors.npu(), truths.npu(), 0, 0, 0, 0, 1, 1, 1, 1, (10, 10), 0.1)
    assert_near(far, torch.tensor([[2.5, 6.5, 9, 9], [9, 9, 9, 9]]))


def test_cells_with_the_middle_of_a_box_are_flagged(npu):
    flags = npu.npu_anchor_response_flags(torch.tensor([[2.0, 0, 4, 2]]).npu(), (2, 3), (2, 2), 2)
    assert flags.cpu().tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_neighbours_of_a_better_box_go(npu):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 1, 1]]).npu()
    scores = torch.tensor([0.8, 0.9, 0.7, 0.1]).npu()
    limits = torch.tensor(0.5).npu(), torch.tensor(0.3).npu()
    kept, count = npu.npu_nms_v4(boxes, scores, 3, *limits, pad_to_max_output_size=True)
    assert kept.cpu().tolist() == [1, 2, 0] and count.item() == 2
    sorted_boxes = torch.cat((boxes, scores[:, None]), 1)[[1, 0, 2]]
    same, indices, mask = npu.npu_nms_with_mask(sorted_boxes, 0.5)
    assert (
        same.equal(sorted_boxes) and indices.cpu().tolist() == [0, 1, 2] and mask.cpu().tolist() == [1, 0, 1]
    )


def test_regions_are_pooled_and_give_their_gradient_back(npu):
    picture = torch.arange(1.0, 37).view(1, 1, 6, 6)
    region = torch.tensor([[0, -2.0, -2.0, 22.0, 22.0]]).npu()
    pooled = npu.npu_roi_align(picture.npu(), region, 0.25, 3, 3, 2, 0)
    assert_near(pooled, F.avg_pool2d(picture, 2))
    back = npu.npu_roi_alignbk(2 * pooled, region, [1, 1, 6, 6], 3, 3, 0.25, 2, 0)
    assert_near(back, pooled.cpu().repeat_interleave(2, 2).repeat_interleave(2, 3) / 2)
