"""Boxes at an angle, regions and anchors on simulated NPUs: shapes whose overlap is known, and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from nearness import assert_near

pytestmark = pytest.mark.npu_sim


def test_boxes_at_an_angle_share_what_geometry_says(npu):
    """A square of side 2 and one turned by 45 degrees share a regular octagon."""
    square = torch.tensor([[[10.0, 10, 2, 2, 0], [0, 0, 4, 1, 90]]])
    others = torch.tensor([[[10.0, 10, 2, 2, 45], [0, 0, 1, 4, 0], [50, 50, 1, 1, 0]]])
    octagon = 8 * (math.sqrt(2) - 1)
    shared = torch.tensor([[[octagon, 0, 0], [0, 4, 0]]])
    assert_near(npu.npu_rotated_overlaps(square.npu(), others.npu()), shared)
    overlap = torch.tensor([[[octagon / (8 - octagon), 0, 0], [0, 1, 0]]])
    assert_near(npu.npu_rotated_iou(square.npu(), others.npu()), overlap)
    assert_near(npu.npu_rotated_iou(square.npu(), others.npu(), mode=1), shared / 4)
    partners = npu.npu_rotated_iou(square.npu(), others[:, :2].npu(), is_cross=False)
    assert_near(partners, torch.tensor([[octagon / (8 - octagon), 1]]))
    corners = torch.tensor([[[9.0, 9, 11, 11, 45]]])
    assert_near(npu.npu_rotated_iou(corners.npu(), corners.npu(), trans=True), torch.ones(1, 1, 1))


def test_the_way_a_box_turns_matters(npu):
    long = torch.tensor([[[0.0, 0, 10, 0.1, 45]]]).npu()
    ends = torch.tensor([[[3.0, 3, 1, 1, 0], [3, -3, 1, 1, 0]]]).npu()
    found = npu.npu_rotated_overlaps(long, ends).cpu()
    assert found[0, 0, 0] > 0.1
    assert found[0, 0, 1] == 0


@pytest.mark.parametrize(("mode", "size"), [(0, (4.0, 2.0)), (1, (6.0, 5.0))])
def test_neighbours_at_an_angle_are_left_out(npu, mode, size):
    """A box given by its corners ends where its size says from its start."""
    boxes = torch.tensor([[2.0, 3, *size, 10], [2.1, 3, *size, 12], [90, 90, 95, 95, 0]])
    scores = torch.tensor([0.8, 0.9, 0.5])
    kept, count = npu.npu_nms_rotated(boxes.npu(), scores.npu(), 0.5, 0, -1, mode)
    assert (kept.tolist(), count.tolist()) == ([1, 2], [2])
    few, _ = npu.npu_nms_rotated(boxes.npu(), scores.npu(), 0.5, 0.6, 1, mode)
    assert few.tolist() == [1]
    with pytest.raises(RuntimeError, match="mode 2 must be 0 or 1"):
        npu.npu_nms_rotated(boxes.npu(), scores.npu(), 0.5, 0, -1, 2)


def test_cells_of_a_region_have_channels_of_their_own(npu):
    picture = torch.arange(4.0)[:, None, None].expand(4, 8, 8).clone()[None].npu().requires_grad_()
    region = torch.tensor([[[0.0], [0], [0], [7], [7]]]).npu()
    pooled = npu.npu_ps_roi_pooling(picture, region, 0.5, 2, 1)
    assert_near(pooled.detach(), torch.arange(4.0).view(1, 1, 2, 2))
    pooled.sum().backward()
    assert picture.grad.sum((0, 2, 3)).tolist() == [1, 1, 1, 1]
    assert picture.grad[0, 3, 2:4, 2:4].tolist() == [[0.25, 0.25], [0.25, 0.25]]  # at half the scale
    with pytest.raises(RuntimeError, match="needs 9 channels, got 4"):
        npu.npu_ps_roi_pooling(picture, region, 0.5, 3, 1)


def test_anchors_get_the_true_boxes_they_fit(npu):
    overlaps = torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.8, 0.4]])
    best, at = overlaps.max(0)
    truth, anchor = overlaps.max(1)
    flags = torch.tensor([1, 0, 1], dtype=torch.uint8)
    given = [x.npu() for x in (torch.zeros(3), overlaps, flags, best, at.int(), truth, anchor.int())]
    assert npu.npu_grid_assign_positive(*given, 2, 0.35, 0.0, False).tolist() == [1, 0, 2]
    assert npu.npu_grid_assign_positive(*given, 2, 0.5, 0.95, True).tolist() == [1, 0, 0]


def test_true_boxes_are_encoded_in_the_cell_of_an_anchor(npu):
    anchor, truth = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[1.0, 1, 3, 9]])
    stride = torch.tensor([8], dtype=torch.int32)
    expected = torch.tensor([[0.5, 3 / 8 + 0.5, math.log(0.5), math.log(2)]])
    assert_near(npu.npu_yolo_boxes_encode(anchor.npu(), truth.npu(), stride.npu()), expected)


def test_chosen_places_are_true_ones(npu):
    wanted = torch.tensor([[1, 0], [0, 1]], dtype=torch.bool).npu()
    places, counts = npu.npu_random_choice_with_mask(wanted, 3, 1, 0)
    assert (places.tolist(), counts.tolist()) == ([[0, 0], [1, 1], [0, 0]], [True, True, False])
    some = (
        npu.npu_random_choice_with_mask(torch.ones(40, dtype=torch.bool).npu(), 5, 1, 0)[0].flatten().tolist()
    )
    assert some == sorted(set(some))
    assert len(some) == 5


def test_best_boxes_of_each_picture(npu):
    boxes = torch.tensor([[[[0.0, 0, 2, 2]], [[0, 0, 2, 2.1]], [[8, 8, 9, 9]]]]).npu()
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.7], [0.2, 0.6]]]).npu()
    found, best, kinds, count = npu.npu_batch_nms(boxes, scores, 0.15, 0.5, 3, 5)
    assert_near(best, torch.tensor([[0.9, 0.7, 0.6, 0.2, 0]]))
    assert (kinds.tolist(), count.tolist()) == ([[0, 1, 1, 0, 0]], [4])
    assert_near(found[0, :2], torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2.1]]))


def test_boxes_at_an_angle_are_encoded_and_come_back(npu):
    anchor, truth = torch.tensor([[[0.0], [0], [4], [2], [45]]]), torch.tensor([[[1.0], [1], [9], [3], [0]]])
    weight = torch.tensor([1.0, 1, 2, 1, 1])
    deltas = npu.npu_rotated_box_encode(anchor.npu(), truth.npu(), weight.npu())
    assert_near(deltas.flatten(), torch.tensor([3 / 4, 1 / 2, 2 * math.log(2), 0, -1]))
    assert_near(npu.npu_rotated_box_decode(anchor.npu(), deltas, weight.npu()), truth)


def test_ones_and_zeros_are_drawn_up_to_their_share(npu):
    labels = torch.tensor([1] * 5 + [0] * 4 + [-1] * 3, dtype=torch.int32)
    for given, ones, zeros in ((labels, 3, 2), (labels[3:], 2, 3), (labels[:6], 3, 1)):
        found = npu.npu_sub_sample(given.npu(), 5, 0.6).cpu()
        assert ((found == 1).sum().item(), (found == 0).sum().item()) == (ones, zeros)
        assert (found == given)[found >= 0].all()
