"""Steps and micro-batches: every row once an epoch, ranks in balance, the same plan for everybody."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftlet.data.batching import Batches, collate, predictors
from swiftlet.data.cutting import (
    Schedule,
    cut,
    cut_alike,
    epoch_order,
    num_steps,
    num_steps_per_epoch,
    pad_cuts,
    share,
)
from swiftlet.data.prefixes import MOST_TOKENS, find_prefixes
from swiftlet.data.rows import IGNORE_INDEX


class Store:
    """Samples of given lengths; token t of sample i is 100 i + t, and all but the first are trained on."""

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths, np.int32)
        self.num_labels = self.lengths - 1

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        ids = 100 * index + np.arange(self.lengths[index], dtype=np.int32)
        labels = ids.copy()
        labels[0] = IGNORE_INDEX
        return ids, labels


def batches_of(store, *, batch_size=1, accumulation=4, world_size=1, rank=0, token_budget=64, seed=7):
    steps = num_steps_per_epoch(
        len(store), batch_size=batch_size, accumulation=accumulation, world_size=world_size
    )
    step_size = batch_size * accumulation * world_size
    return Batches(store, Schedule(seed, step_size, steps, steps, token_budget, world_size), rank)


def first_epoch(batches):
    return [batches.step(0, number) for number in range(batches.schedule.steps_per_epoch)]


lengths_of = st.lists(st.integers(2, 90), min_size=1, max_size=120)


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 200))
def test_each_row_is_seen_exactly_once_an_epoch(lengths, batch_size, accumulation, world_size, token_budget):
    store = Store(lengths)
    seen = Counter()
    for rank in range(world_size):
        batches = batches_of(
            store,
            batch_size=batch_size,
            accumulation=accumulation,
            world_size=world_size,
            rank=rank,
            token_budget=token_budget,
        )
        for step in first_epoch(batches):
            seen.update(sample for micro_batch in step.micro_batches for sample in micro_batch)
    assert seen == Counter(range(len(store)))


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(1, 4), st.integers(0, 200))
def test_ranks_agree_on_a_step_and_have_equally_many_micro_batches(lengths, world_size, token_budget):
    store = Store(lengths)
    plans = [
        first_epoch(batches_of(store, world_size=world_size, rank=rank, token_budget=token_budget))
        for rank in range(world_size)
    ]
    for steps in zip(*plans, strict=True):
        assert len({tuple(step.samples) for step in steps}) == 1
        assert len({len(step.micro_batches) for step in steps}) == 1
        assert {step.num_tokens for step in steps} == {sum(lengths[s] for s in steps[0].samples)}
        assert {step.num_label_tokens for step in steps} == {sum(lengths[s] - 1 for s in steps[0].samples)}


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(1, 8))
def test_ranks_are_balanced_to_within_one_sample(lengths, world_size):
    shares = share(range(len(lengths)), np.asarray(lengths), world_size)
    totals = [sum(lengths[sample] for sample in part) for part in shares]
    assert max(totals) - min(totals) <= max(lengths)
    assert sorted(sample for part in shares for sample in part) == list(range(len(lengths)))


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(1, 300))
def test_micro_batches_keep_the_budget_unless_one_sample_is_longer(lengths, token_budget):
    bins = cut(range(len(lengths)), np.asarray(lengths), token_budget)
    sizes = [sum(lengths[sample] for sample in part) for part in bins]
    assert all(size <= token_budget or len(part) == 1 for size, part in zip(sizes, bins, strict=True))
    assert sizes == sorted(sizes, reverse=True)


def test_a_budget_of_zero_puts_each_sample_alone():
    assert [len(part) for part in cut(range(5), np.array([3, 9, 2, 5, 5]), 0)] == [1] * 5


class Chats(Store):
    """Samples of given lengths after one of three system prompts of 0, 20 and 60 tokens."""

    def __init__(self, lengths):
        self.begin = [(0, 20, 60)[number % 7 % 3] for number in range(len(lengths))]
        super().__init__(np.asarray(lengths) + self.begin)

    def __getitem__(self, index):
        ids, labels = super().__getitem__(index)
        ids[: self.begin[index]] = -1 - np.arange(self.begin[index])
        labels[: self.begin[index] + 1] = IGNORE_INDEX
        return ids, labels

    def prompt(self, index):
        return self[index][0][: self.begin[index]]


def num_computed(store, part):
    found = find_prefixes([store[sample][0] for sample in part], [store.prompt(sample) for sample in part])
    return sum(int(store.lengths[sample]) for sample in part) if found is None else len(found.first_U)


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(1, 300))
def test_samples_that_begin_differently_are_cut_as_ever(lengths, token_budget):
    sizes = np.asarray(lengths)
    prompts = [np.array([number, 1, 2]) for number in range(len(lengths))]
    samples = list(range(len(lengths)))
    assert cut_alike(samples, sizes, token_budget, prompts) == cut(samples, sizes, token_budget)


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(1, 300), st.sampled_from([1 / 32, 1 / 16, 1 / 4]))
def test_what_is_computed_keeps_the_budget_however_many_tokens_there_are(lengths, token_budget, token_cost):
    store, samples = Chats(lengths), list(range(len(lengths)))
    prompts = [store.prompt(sample) for sample in samples]
    bins = cut_alike(samples, store.lengths, token_budget, prompts, token_cost)
    assert sorted(sample for part in bins for sample in part) == samples
    for part in bins:
        tokens, computed = int(store.lengths[part].sum()), num_computed(store, part)
        assert len(part) == 1 or computed <= token_budget
        assert len(part) == 1 or tokens <= MOST_TOKENS * token_budget
        assert len(part) == 1 or tokens <= token_budget or computed + token_cost * tokens <= token_budget
        for half in (part[::2], part[1::2]):  # as where another rank has more micro-batches
            assert len(half) < 2 or num_computed(store, half) <= token_budget


def test_a_long_system_prompt_takes_its_place_once():
    store = Chats([10] * 30)
    long = [sample for sample in range(30) if store.begin[sample] == 60]
    samples = long[:8]
    prompts = [store.prompt(sample) for sample in samples]
    assert [len(part) for part in cut(samples, store.lengths, 160)] == [2, 2, 2, 2]
    assert [len(part) for part in cut_alike(samples, store.lengths, 160, prompts)] == [8]
    batches = batches_of(store, batch_size=4, token_budget=160)
    plain = sum(len(step.micro_batches) for step in first_epoch(batches))
    alike = sum(len(step.micro_batches) for step in first_epoch(replace(batches, token_cost=1 / 16)))
    assert alike < plain / 1.5
    pair = replace(batches, token_cost=1 / 16, schedule=batches.schedule._replace(token_budget=100))
    assert [len(part) for part in pair._cut(long[:2])] == [2]
    assert [len(part) for part in replace(pair, token_cost=None)._cut(long[:2])] == [1, 1]
    alone = first_epoch(replace(pair, schedule=batches.schedule._replace(token_budget=0)))
    assert {len(part) for step in alone for part in step.micro_batches} == {1}


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(1, 3), st.integers(2, 4))
def test_the_order_does_not_depend_on_the_number_of_ranks(lengths, accumulation, world_size):
    store = Store(lengths)
    alone = first_epoch(batches_of(store, accumulation=accumulation * world_size))
    many = first_epoch(batches_of(store, accumulation=accumulation, world_size=world_size))
    shared = min(len(alone), len(many)) - 1
    assert [step.samples for step in alone[:shared]] == [step.samples for step in many[:shared]]
    assert sum((step.samples for step in alone), []) == sum((step.samples for step in many), [])


def test_going_on_in_the_middle_gives_the_steps_that_an_unbroken_run_would():
    batches = batches_of(Store(range(2, 40)))
    an_epoch = batches.schedule.steps_per_epoch
    whole = list(islice(batches.places(0, 0), 2 * an_epoch))
    assert next(batches.places(1, 3)) == whole[an_epoch + 3] == (1, 3)


def test_epochs_have_different_orders_that_follow_from_the_seed():
    key = np.random.SeedSequence([1, 0])
    assert (
        epoch_order(50, 1, 0).tolist() == np.random.Generator(np.random.Philox(key)).permutation(50).tolist()
    )
    assert epoch_order(50, 1, 0).tolist() != epoch_order(50, 1, 1).tolist()
    assert epoch_order(50, 1, 0).tolist() != epoch_order(50, 2, 0).tolist()


@pytest.mark.parametrize(("world_size", "steps"), [(1, 618), (4, 618), (8, 619)])
def test_steps_of_the_reference_run(world_size, steps):
    accumulation = 16 // world_size
    assert steps == num_steps_per_epoch(9900, batch_size=1, accumulation=accumulation, world_size=world_size)
    assert num_steps(steps, 5) == 5 * steps
    assert num_steps(steps, 5, max_steps=7) == 7


def test_padding_splits_the_fullest_micro_batch_before_it_adds_empty_ones():
    assert pad_cuts([[[1, 2, 3]], [[4], [5]]]) == [[[1, 3], [2]], [[4], [5]]]
    assert pad_cuts([[[1]], [[4], [5]]]) == [[[1], []], [[4], [5]]]
    assert pad_cuts([[], [[4]]]) == [[[]], [[4]]]


def test_collate_joins_samples_without_padding_and_restarts_positions():
    batch = collate(Store([3, 2, 4]), [2, 0])
    assert batch.input_ids_T.tolist() == [200, 201, 202, 0, 1]  # nothing is predicted from a last token
    assert batch.targets_T.tolist() == [201, 202, 203, 1, 2]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.cu_seqlens == [0, 3, 5]
    assert batch.sample_ids == [2, 0]
    assert batch.to("cpu").input_ids_T.dtype == torch.long


@pytest.mark.parametrize(
    ("labels", "tokens", "targets"),
    [
        ([-100, -100, 7, 8], [5, 6, 7], [-100, 7, 8]),
        ([-100, 6, -100, -100], [5], [6]),
        ([-100, -100, 7, -100], [5, 6], [-100, 7]),
        ([5, -100, -100, -100], [5], [-100]),
        ([-100, -100, -100, -100], [5], [-100]),
    ],
)
def test_a_sample_ends_with_the_last_token_that_predicts_a_trained_one(labels, tokens, targets):
    """What follows the last trained token is seen by none that predicts one; the first is predicted from nothing."""
    ids, found = predictors(np.array([5, 6, 7, 8]), np.array(labels))
    assert (ids.tolist(), found.tolist()) == (tokens, targets)


def test_collate_of_nothing_contributes_nothing():
    batch = collate(Store([3]), [])
    assert batch.targets_T.tolist() == [IGNORE_INDEX]
    assert batch.cu_seqlens == [0, 1]
    assert batch.sample_ids == []
