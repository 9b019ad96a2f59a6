"""The demo rows: always the same, no question twice, and every answer follows from its question alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import pytest

from swiftlet.data import demo_math

ROWS = list(demo_math.rows())
SHA256_OF_ROWS = "7e420dc1ea376756867b70c0533c555801dd5d3272a52080dc9b7a1b06394dd6"
NUMBER = r"(\d+)"
# What a reader works out from the words of each question, written without a look at the generator.
READINGS = {
    r"has # \w+ and buys # more": lambda a, b: a + b,
    r"had # \w+ and gave # of them": lambda a, b: a - b,
    r"There are # boxes with # \w+ in each": lambda a, b: a * b,
    r"shares # \w+ equally among # children": lambda a, b: a / b,
    r"found # \w+, \w+ found # and a friend found #\.": lambda a, b, c: a + b + c,
    r"buys # bags with # \w+ each and loses # ": lambda a, b, c: a * b - c,
    r"has # boxes with # \w+ each and # loose": lambda a, b, c: a * b + c,
    r"buys # \w+ at # yuan each and pays with 100 yuan": lambda a, b: 100 - a * b,
    r"有#.+，又买了#": lambda a, b: a + b,
    r"有#.+，送给\D+#": lambda a, b: a - b,
    r"有#个盒子，每个盒子里有#": lambda a, b: a * b,
    r"把#.+平均分给#个小朋友": lambda a, b: a / b,
    r"找到#.+找到#.+老师找到#": lambda a, b, c: a + b + c,
    r"买了#袋.+，每袋#.+，丢了#": lambda a, b, c: a * b - c,
    r"有#盒.+，每盒#.+，另外还有#": lambda a, b, c: a * b + c,
    r"买了#.+，每\D#元，付了100元": lambda a, b: 100 - a * b,
}
SUM = re.compile(r"(\d+)([-+×÷])(\d+)=(\d+)")
SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "×": lambda a, b: a * b, "÷": lambda a, b: a / b}


def read(question: str) -> tuple[str, float]:
    """Return the pattern that fits the question, and the answer by that reading."""
    fitting = []
    for pattern, work_out in READINGS.items():
        match = re.search(pattern.replace("#", NUMBER), question)
        if match:
            fitting.append((pattern, work_out(*map(int, match.groups()))))
    assert len(fitting) == 1, (question, fitting)
    return fitting[0]


def test_the_rows_are_the_same_on_every_machine():
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256_OF_ROWS


def test_no_question_comes_twice():
    assert len(ROWS) == demo_math.NUM_ROWS == len({row["input"] for row in ROWS})


def test_the_columns_are_those_of_blossom_math():
    assert {tuple(row) for row in ROWS} == {("input", "output", "answer")}
    assert all(isinstance(value, str) and value for row in ROWS for value in row.values())


def test_every_answer_follows_from_its_question():
    kinds = Counter()
    for row in ROWS:
        pattern, answer = read(row["input"])
        kinds[pattern] += 1
        assert answer == int(row["answer"]), row
    assert set(kinds) == set(READINGS)
    assert min(kinds.values()) > len(ROWS) / len(READINGS) / 2, "one kind of problem is rare"


def test_every_solution_is_right_in_each_step_and_ends_in_the_answer():
    for row in ROWS:
        sums = [(int(a), sign, int(b), int(result)) for a, sign, b, result in SUM.findall(row["output"])]
        assert sums
        for a, sign, b, result in sums:
            assert SIGNS[sign](a, b) == result, row
            assert 1 <= result <= 100
        assert sums[-1][-1] == int(row["answer"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_half_of_the_rows_are_in_each_language(language):
    found = sum(problem.language == language for problem in demo_math.problems())
    assert 0.45 < found / len(ROWS) < 0.55
    for problem in demo_math.problems(200):
        assert problem.question.isascii() == (problem.language == "en")


def test_another_seed_gives_other_rows():
    assert list(demo_math.rows(20, seed=1)) != ROWS[:20]
    assert list(demo_math.rows(20)) == ROWS[:20]
