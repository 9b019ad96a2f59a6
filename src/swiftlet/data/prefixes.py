"""Equal beginnings of the samples of a micro-batch: which of its tokens need to be computed once only. No torch.

What a causal model makes of a token follows from the tokens before it and its position. Samples that begin alike, with
the same system prompt, tools or question, therefore have the same values there, and a micro-batch needs one of each.

Shapes: T tokens of a micro-batch, U rows that are computed, P rows that stand for C tokens or fewer, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from swiftlet.data.rows import IGNORE_INDEX

LEAST_SHARE = 1 / 32  # of the tokens: below, bringing them together costs more than it spares
MOST_TOKENS = 4  # for each row that a micro-batch has room for


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


class Beginnings:
    """How much of their prompts samples have in common.

    Args:
        prompts: the tokens of each sample before the first whose prediction is trained on.
    """

    def __init__(self, prompts: Sequence[np.ndarray]) -> None:
        keys = [prompt.astype(">i8").tobytes() for prompt in prompts]
        self.order = sorted(range(len(prompts)), key=keys.__getitem__)
        equal = (_num_equal(prompts[one], prompts[other]) for one, other in pairwise(self.order))
        self.equal = np.fromiter(equal, np.int64)

    def common(self, place: int) -> np.ndarray:
        """Return how many tokens each sample has in common with the one at `place` of the order [S], 0 with itself."""
        before = np.minimum.accumulate(self.equal[:place][::-1])[::-1]
        after = np.minimum.accumulate(self.equal[place:])
        found_S = np.zeros(len(self.order), np.int64)
        found_S[self.order] = np.concatenate([before, [0], after])
        return found_S


def prompt_of(ids: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the tokens of a sample before the first that predicts a trained one."""
    trained = targets != IGNORE_INDEX
    return ids[: trained.argmax()] if trained.any() else ids


def find_prefixes(ids: Sequence[np.ndarray], prompts: Sequence[np.ndarray]) -> Prefixes | None:
    """Return which tokens of samples are computed once, None where these are few.

    Args:
        ids: the tokens of each sample.
        prompts: the beginning of each that may be shared; a token whose prediction is trained on, and what follows it
            in its sample, keeps a row of its own.
    """
    ends = np.cumsum([len(part) for part in ids])
    rows = [np.arange(end - len(part), end) for part, end in zip(ids, ends, strict=True)]
    alike = Beginnings(prompts)
    for (earlier, later), equal in zip(pairwise(alike.order), alike.equal, strict=True):
        rows[later][:equal] = rows[earlier][:equal]
    num_spared = int(alike.equal.sum())
    if not num_spared or num_spared < LEAST_SHARE * ends[-1]:
        return None
    return _arranged(np.concatenate(rows))


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
