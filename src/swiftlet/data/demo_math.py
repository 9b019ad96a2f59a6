"""The demo dataset `demo-math-zh`: arithmetic word problems in Chinese and English, made by rules. No torch, no files.

A problem is a scenario (a row of text patterns) filled with names, things and numbers. All numbers, also those on the
way to the answer, lie between 1 and 100. The same call gives the same rows on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

NUM_ROWS = 5000
SEED = 42


class Step(NamedTuple):
    """One sum, `a sign b = result`."""

    a: int
    sign: str
    b: int
    result: int

    def __str__(self) -> str:
        return f"{self.a}{self.sign}{self.b}={self.result}"


class Problem(NamedTuple):
    """A word problem with its solution.

    Args:
        sentence: the answer as one sentence in the language of the question.
    """

    question: str
    steps: tuple[Step, ...]
    sentence: str
    answer: int
    language: str

    def solution(self) -> str:
        """Return the worked solution: the sums in their order."""
        if self.language == "zh":
            return "，".join(map(str, self.steps)) + "。"
        return ", ".join(map(str, self.steps)) + "."


class Scenario(NamedTuple):
    """Text patterns of one kind of problem, with the numbers a, b, c and the result r."""

    kind: str
    question: str
    sentence: str


def _plus(a: int, b: int) -> Step:
    return Step(a, "+", b, a + b)


def _minus(a: int, b: int) -> Step:
    return Step(a, "-", b, a - b)


def _times(a: int, b: int) -> Step:
    return Step(a, "×", b, a * b)


def _add(draw: random.Random) -> tuple[list[int], list[Step]]:
    a, b = draw.randint(3, 40), draw.randint(3, 19)
    return [a, b], [_plus(a, b)]


def _subtract(draw: random.Random) -> tuple[list[int], list[Step]]:
    a = draw.randint(10, 50)
    b = draw.randint(2, min(19, a - 2))
    return [a, b], [_minus(a, b)]


def _multiply(draw: random.Random) -> tuple[list[int], list[Step]]:
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    return [a, b], [_times(a, b)]


def _divide(draw: random.Random) -> tuple[list[int], list[Step]]:
    b, result = draw.randint(2, 9), draw.randint(2, 9)
    return [b * result, b], [Step(b * result, "÷", b, result)]


def _add_twice(draw: random.Random) -> tuple[list[int], list[Step]]:
    a, b, c = (draw.randint(3, 15) for _ in range(3))
    return [a, b, c], [_plus(a, b), _plus(a + b, c)]


def _multiply_and_subtract(draw: random.Random) -> tuple[list[int], list[Step]]:
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    c = draw.randint(1, min(9, a * b - 2))
    return [a, b, c], [_times(a, b), _minus(a * b, c)]


def _multiply_and_add(draw: random.Random) -> tuple[list[int], list[Step]]:
    a, b, c = draw.randint(2, 9), draw.randint(2, 9), draw.randint(2, 9)
    return [a, b, c], [_times(a, b), _plus(a * b, c)]


def _change_of_100(draw: random.Random) -> tuple[list[int], list[Step]]:
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    return [a, b], [_times(a, b), _minus(100, a * b)]


KINDS: dict[str, Callable[[random.Random], tuple[list[int], list[Step]]]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "add_twice": _add_twice,
    "multiply_and_subtract": _multiply_and_subtract,
    "multiply_and_add": _multiply_and_add,
    "change_of_100": _change_of_100,
}

ENGLISH = (
    Scenario(
        "add",
        "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
        "{name} has {r} {things} now.",
    ),
    Scenario(
        "subtract",
        "{name} had {a} {things} and gave {b} of them to {other}. How many {things} does {name} have left?",
        "{name} has {r} {things} left.",
    ),
    Scenario(
        "multiply",
        "There are {a} boxes with {b} {things} in each box. How many {things} are there in all?",
        "There are {r} {things} in all.",
    ),
    Scenario(
        "divide",
        "{name} shares {a} {things} equally among {b} children. How many {things} does each child get?",
        "Each child gets {r} {things}.",
    ),
    Scenario(
        "add_twice",
        "{name} found {a} {things}, {other} found {b} and a friend found {c}. How many {things} did they find?",
        "They found {r} {things}.",
    ),
    Scenario(
        "multiply_and_subtract",
        "{name} buys {a} bags with {b} {things} each and loses {c} {things}. How many {things} are left?",
        "There are {r} {things} left.",
    ),
    Scenario(
        "multiply_and_add",
        "{name} has {a} boxes with {b} {things} each and {c} loose {things}. How many {things} does {name} have?",
        "{name} has {r} {things}.",
    ),
    Scenario(
        "change_of_100",
        "{name} buys {a} {things} at {b} yuan each and pays with 100 yuan. How much change does {name} get?",
        "{name} gets {r} yuan back.",
    ),
)
CHINESE = (
    Scenario(
        "add",
        "{name}有{a}{unit}{thing}，又买了{b}{unit}。{name}现在有多少{unit}{thing}？",
        "{name}现在有{r}{unit}{thing}。",
    ),
    Scenario(
        "subtract",
        "{name}有{a}{unit}{thing}，送给{other}{b}{unit}。{name}还剩多少{unit}{thing}？",
        "{name}还剩{r}{unit}{thing}。",
    ),
    Scenario(
        "multiply",
        "有{a}个盒子，每个盒子里有{b}{unit}{thing}。一共有多少{unit}{thing}？",
        "一共有{r}{unit}{thing}。",
    ),
    Scenario(
        "divide",
        "{name}把{a}{unit}{thing}平均分给{b}个小朋友。每个小朋友分到多少{unit}{thing}？",
        "每个小朋友分到{r}{unit}{thing}。",
    ),
    Scenario(
        "add_twice",
        "{name}找到{a}{unit}{thing}，{other}找到{b}{unit}，老师找到{c}{unit}。他们一共找到多少{unit}{thing}？",
        "他们一共找到{r}{unit}{thing}。",
    ),
    Scenario(
        "multiply_and_subtract",
        "{name}买了{a}袋{thing}，每袋{b}{unit}，丢了{c}{unit}。还剩多少{unit}{thing}？",
        "还剩{r}{unit}{thing}。",
    ),
    Scenario(
        "multiply_and_add",
        "{name}有{a}盒{thing}，每盒{b}{unit}，另外还有{c}{unit}。{name}有多少{unit}{thing}？",
        "{name}有{r}{unit}{thing}。",
    ),
    Scenario(
        "change_of_100",
        "{name}买了{a}{unit}{thing}，每{unit}{b}元，付了100元。应找回多少元？",
        "应找回{r}元。",
    ),
)
NAMES_EN = ("Tom", "Amy", "Ben", "Lily", "Jack", "Mia", "Sam", "Anna", "Leo", "Ruth", "Max", "Ella")
NAMES_ZH = ("小明", "小红", "小华", "小丽", "小刚", "小美", "小军", "小芳", "小林", "小雨", "小东", "小云")
THINGS_EN = ("apples", "pears", "books", "pens", "stamps", "shells", "coins", "cards", "cakes", "eggs")
THINGS_ZH = (
    ("苹果", "个"),
    ("梨", "个"),
    ("书", "本"),
    ("铅笔", "支"),
    ("邮票", "张"),
    ("贝壳", "个"),
    ("画", "幅"),
    ("卡片", "张"),
    ("蛋糕", "块"),
    ("鸡蛋", "个"),
)


def draw_problem(draw: random.Random) -> Problem:
    """Return one random problem; the languages and the scenarios come equally often."""
    language = draw.choice(("zh", "en"))
    scenario = draw.choice(CHINESE if language == "zh" else ENGLISH)
    numbers, steps = KINDS[scenario.kind](draw)
    name, other = draw.sample(NAMES_ZH if language == "zh" else NAMES_EN, 2)
    words = {"name": name, "other": other}
    if language == "zh":
        words["thing"], words["unit"] = draw.choice(THINGS_ZH)
    else:
        words["things"] = draw.choice(THINGS_EN)
    words |= {letter: str(number) for letter, number in zip("abc", numbers, strict=False)}
    answer = steps[-1].result
    return Problem(
        question=scenario.question.format(**words),
        steps=tuple(steps),
        sentence=scenario.sentence.format(r=answer, **words),
        answer=answer,
        language=language,
    )


def problems(num_rows: int = NUM_ROWS, seed: int = SEED) -> Iterator[Problem]:
    """Yield `num_rows` problems, no question twice."""
    draw = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < num_rows:
        problem = draw_problem(draw)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def rows(num_rows: int = NUM_ROWS, seed: int = SEED) -> Iterator[dict[str, str]]:
    """Yield rows with the columns of blossom-math: `input`, `output` (the worked solution) and `answer`."""
    for problem in problems(num_rows, seed):
        yield {"input": problem.question, "output": problem.solution(), "answer": str(problem.answer)}
