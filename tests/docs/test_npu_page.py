"""The page on NPUs: both languages have the commands that tests/npu runs, word for word, and links that lead."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "npu"))

from page_commands import ALL  # noqa: E402

PAGES = ("npu.md", "npu_CN.md")
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_is_run(page):
    blocks = BLOCK.findall(text_of(page))
    assert {language for language, _ in blocks} == {"shell", "text"}
    typed = [line for language, body in blocks if language == "shell" for line in body.splitlines()]
    assert typed.count("swift doctor") == 2
    assert set(typed) == set(ALL)


@pytest.mark.parametrize("page", PAGES)
def test_anchors_are_those_of_headings(page):
    text = text_of(page)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_both_languages_have_the_same_tables_of_figures():
    numbers = [
        re.findall(r"[\d.]+", "".join(re.findall(r"^\| (?:7|14)B .*$", text_of(page), re.MULTILINE)))
        for page in PAGES
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) > 20
