"""Equal beginnings of the samples of a micro-batch: which of its tokens need to be computed once only. No torch.

What a causal model makes of a token follows from the tokens before it and its position. Samples that begin alike, with
the same system prompt, tools or question, therefore have the same values there, and a micro-batch needs one of each.

Shapes: T tokens of a micro-batch, U rows that are computed, P rows that stand for C tokens or fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

LEAST_SHARE = 1 / 32  # of the tokens: below, bringing them together costs more than it spares


class Prefixes(NamedTuple):
    """How T tokens are U rows; rows that stand for several tokens come first.

    Args:
        source_T: the row of each token.
        first_U: the first token of each row.
        copies: the tokens of the first rows, class by class of about equally many: [P, C], -1 where there is none.
    """

    source_T: np.ndarray
    first_U: np.ndarray
    copies: tuple[np.ndarray, ...]


def find_prefixes(ids: Sequence[np.ndarray], wanted: np.ndarray) -> Prefixes | None:
    """Return which tokens of samples are computed once, None where these are few.

    Args:
        ids: the tokens of each sample.
        wanted: whether a token's prediction is trained on, for all samples one after another. Such a token, and what
            follows it in its sample, keeps a row of its own.
    """
    ends = np.cumsum([len(part) for part in ids])
    shared = [_prompt(part, wanted[end - len(part) : end]) for part, end in zip(ids, ends, strict=True)]
    order = sorted(range(len(ids)), key=lambda number: shared[number].astype(">i8").tobytes())
    rows = [np.arange(end - len(part), end) for part, end in zip(ids, ends, strict=True)]
    num_spared = 0
    for earlier, later in pairwise(order):
        equal = _num_equal(shared[earlier], shared[later])
        rows[later][:equal] = rows[earlier][:equal]
        num_spared += equal
    if not num_spared or num_spared < LEAST_SHARE * ends[-1]:
        return None
    return _arranged(np.concatenate(rows))


def _prompt(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return ids[: wanted.argmax()] if wanted.any() else ids


def _num_equal(first: np.ndarray, second: np.ndarray) -> int:
    """Return how many tokens at the beginning are the same."""
    length = min(len(first), len(second))
    different = first[:length] != second[:length]
    return int(different.argmax()) if different.any() else length


def _arranged(names_T: np.ndarray) -> Prefixes:
    """Return the prefixes of tokens that have the same row where they have the same name."""
    _, source_T, counts_U = np.unique(names_T, return_inverse=True, return_counts=True)
    classes_U = np.ceil(np.log2(counts_U)).astype(int)
    order_U = np.argsort(-classes_U, kind="stable")
    source_T = np.argsort(order_U)[source_T]
    classes_U, counts_U = classes_U[order_U], counts_U[order_U]
    places_T = np.argsort(source_T, kind="stable")
    starts_U = np.cumsum(counts_U) - counts_U
    copies = []
    for kind in range(classes_U[0], 0, -1):
        of_kind = classes_U == kind
        if of_kind.any():
            counts, starts = counts_U[of_kind][:, None], starts_U[of_kind][:, None]
            columns = np.arange(counts.max())
            copies.append(
                np.where(columns < counts, places_T[np.minimum(starts + columns, len(places_T) - 1)], -1)
            )
    return Prefixes(source_T, places_T[starts_U], tuple(copies))
