"""Which tokens of a micro-batch are computed once: against the definition, on many random micro-batches."""

from __future__ import annotations

import numpy as np
import pytest

from swiftlet.data.batching import collate
from swiftlet.data.prefixes import LEAST_SHARE, find_prefixes
from swiftlet.data.rows import IGNORE_INDEX


def samples_of(rng, num_samples):
    """Return samples over three words, so that many begin alike, and how much of each is a prompt."""
    ids = [rng.integers(0, 3, rng.integers(1, 12)) for _ in range(num_samples)]
    for number in range(1, num_samples, 2):  # the same prompt, as of several answers to one question
        ids[number] = np.concatenate([ids[number - 1][:6], ids[number]])
    return ids, [int(rng.integers(0, len(part) + 1)) for part in ids]


def prompts_of(ids, prompts):
    return [part[:prompt] for part, prompt in zip(ids, prompts, strict=True)]


@pytest.mark.parametrize("seed", range(60))
def test_rows_are_the_different_beginnings(seed):
    rng = np.random.default_rng(seed)
    ids, prompts = samples_of(rng, int(rng.integers(2, 9)))
    names = []  # what a causal model makes of a token follows from this
    for number, (part, prompt) in enumerate(zip(ids, prompts, strict=True)):
        for place in range(len(part)):
            owner = number if place >= prompt else -1
            names.append((owner, tuple(part[: place + 1])))
    found = find_prefixes(ids, prompts_of(ids, prompts))
    num_spared = len(names) - len(set(names))
    if num_spared == 0 or num_spared < LEAST_SHARE * len(names):
        assert found is None
        return
    assert len(found.first_U) == len(set(names))
    rows = {}
    for place, row in enumerate(found.source_T):
        assert rows.setdefault(names[place], row) == row
        assert found.first_U[row] <= place
    assert sorted(rows.values()) == list(range(len(found.first_U)))
    copies = [[place for place in line if place >= 0] for part in found.copies for line in part.tolist()]
    for row, places in enumerate(copies):
        assert len(places) > 1
        assert places == np.flatnonzero(found.source_T == row).tolist()
    rest = found.source_T[found.source_T >= len(copies)]
    assert len(rest) == len(set(rest.tolist()))
    assert sum(part.size for part in found.copies) <= 2 * len(names)


def test_nothing_is_shared_between_samples_that_begin_differently():
    ids = [np.array([1, 2, 3]), np.array([2, 2, 3])]
    assert find_prefixes(ids, prompts_of(ids, [2, 2])) is None


def test_a_few_tokens_are_not_worth_it():
    long = np.arange(10, 200)
    ids = [np.concatenate([[1, 2], long]), np.concatenate([[1, 2], long[::-1]])]
    assert find_prefixes(ids, prompts_of(ids, [100, 100])) is None


class Store:
    """Two rows with one question and different answers."""

    rows = (([1, 5, 6, 7], [-100, -100, 6, 7]), ([1, 5, 8], [-100, -100, 8]))

    def __getitem__(self, index):
        ids, labels = self.rows[index]
        return np.array(ids), np.array(labels)


def test_a_token_whose_prediction_is_trained_on_keeps_its_row():
    assert collate(Store(), [0, 1]).prefixes is None
    batch = collate(Store(), [0, 1], shares=True)
    assert batch.targets_T.tolist() == [IGNORE_INDEX, 6, 7, IGNORE_INDEX, 8]
    row = batch.prefixes.source_T
    assert row[0] == row[3]  # the 5 of each predicts another answer
    assert len(set(row.tolist())) == 4
    assert collate(Store(), [0], shares=True).prefixes is None
