"""How near an answer is to the text that was expected: exact match and ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Sequence

CHINESE = r"\u3400-\u9fff\uf900-\ufaff"
UNIT = re.compile(rf"[{CHINESE}]|[^\W_{CHINESE}]+")


def units(text: str) -> list[str]:
    """Return the words of a text in lower case; each Chinese character is a word of its own."""
    return UNIT.findall(text.lower())


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, in O(len(a) * len(b)) time and O(len(b)) memory."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def rouge_l(response: str, label: str) -> float:
    """Return the F1 of ROUGE-L, 0 to 1.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", equation 4 with beta = 1.
    """
    a, b = units(response), units(label)
    if not a or not b:
        return float(a == b)
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b))


def exact_match(response: str, label: str) -> bool:
    """Return whether both texts are the same but for white space around them."""
    return response.strip() == label.strip()


def score(responses: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Return the means over all rows: `exact_match` and `rouge_l`, 0 to 1; empty without rows."""
    if not responses:
        return {}
    pairs = list(zip(responses, labels, strict=True))
    return {
        "exact_match": sum(exact_match(a, b) for a, b in pairs) / len(pairs),
        "rouge_l": sum(rouge_l(a, b) for a, b in pairs) / len(pairs),
    }
