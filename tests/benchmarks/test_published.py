"""The published rows beside the model: errors are bounded here, and listed in docs/planning.md."""

import statistics

import pytest

from swiftlet.models.families import FAMILIES


@pytest.fixture
def published():
    import published

    return published


def errors(published, kind):
    rows = [row for row in published.read_rows("published_a100.csv", "gib") if row.details["set"] == kind]
    return [published.reserved_on_a100(FAMILIES[row.model].geometry, row) / row.published - 1 for row in rows]


def test_nine_lora_rows_of_an_a100(published):
    found = errors(published, "calibration")
    assert len(found) == 9
    assert max(map(abs, found)) < 0.07
    assert statistics.mean(map(abs, found)) < 0.03


def test_full_rows_of_an_a100(published):
    found = errors(published, "full")
    assert len(found) >= 6
    assert max(map(abs, found)) < 0.06


def test_the_ascend_rows_that_physics_explains(published):
    rows = published.read_rows("published_ascend.csv", "gb")
    assert len(rows) == 9
    for row in rows:
        geometry = FAMILIES[row.model].geometry
        if (
            row.model.endswith("-7b-chat")
            and row.details["engine"] == "none"
            and row.details["world_size"] != "1"
        ):
            assert published.visible_on_ascend(geometry, row) == pytest.approx(row.published, rel=0.05)
        if row.details["hours"] and row.details["engine"] != "zero2":
            assert published.hours_on_ascend(geometry, row) == pytest.approx(
                float(row.details["hours"]), rel=0.05
            )
