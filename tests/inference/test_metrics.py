"""Exact match and ROUGE-L against values worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftlet.inference.metrics import exact_match, longest_common_subsequence, rouge_l, score, units


def test_chinese_characters_and_words_are_units():
    assert units("答案是 42, OK") == ["答", "案", "是", "42", "ok"]


@pytest.mark.parametrize(
    ("response", "label", "value"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat", "the cat sat down", 2 * 2 / 6),
        ("a b c", "x y z", 0.0),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("北京很大", "北京大", 2 * 3 / 7),
    ],
)
def test_rouge_l(response, label, value):
    assert rouge_l(response, label) == pytest.approx(value)


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_common_subsequence_against_the_definition(a, b):
    def slow(x, y):
        if not x or not y:
            return 0
        if x[0] == y[0]:
            return 1 + slow(x[1:], y[1:])
        return max(slow(x[1:], y), slow(x, y[1:]))

    assert longest_common_subsequence(a, b) == slow(a, b)


def test_scores_are_means():
    assert exact_match(" 5\n", "5")
    assert score(["a", "b"], ["a", "c"]) == {"exact_match": 0.5, "rouge_l": 0.5}
    assert score([], []) == {}
