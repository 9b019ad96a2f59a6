"""Rows come and go in a running batch, and each gets the answer that it has alone."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, DynamicLayer

from swiftlet.inference.cache import ROOM, open_cache
from swiftlet.inference.generate import Generator, Settings

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "vocab_size": 120,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
JAMBA = {
    "num_experts": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
}
WINDOW = {
    "use_sliding_window": True,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
# The last two layers read the keys of those before.
SHARED = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
MODELS = {
    "whole": ("qwen2", {}),
    "window": ("qwen2", WINDOW),
    "shared": ("gemma4_text", SHARED),
    "state": ("jamba", JAMBA),  # which no row can leave
}


def model_of(name):
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **settings}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def prompts_of(number, seed=0):
    drawn = random.Random(seed)
    return [[drawn.randrange(3, 110) for _ in range(drawn.choice([1, 3, 9, 20]))] for _ in range(number)]


def generator(model, *, ends=tuple(range(3, 120, 9)), words=(), context=None, **settings):
    return Generator(
        model=model,
        decode=lambda ids: "".join(f"<{token}>" for token in ids),
        stop_token_ids=ends,
        settings=Settings(**{"max_new_tokens": 14, "do_sample": False, "stop_words": words, **settings}),
        pad_id=0,
        context_length=context,
    )


def texts_of(engine, prompts, most_tokens=None):
    return {at: reply.text for at, reply in engine.replies_as_they_end(prompts, most_tokens)}


def rows_of_passes(model, call):
    """Return what a call gives, and the rows of each pass through the model."""
    rows = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    try:
        return call(), rows
    finally:
        hook.remove()


@pytest.mark.parametrize("name", MODELS)
def test_each_row_is_answered_as_alone(name):
    prompts = prompts_of(9)
    model = model_of(name)
    for settings in (
        {},
        {"context": 24, "max_new_tokens": 30},  # the longest prompt has room for four tokens
        {"words": tuple(f"<{token}>" for token in range(5, 120, 9)), "ends": ()},
        {"repetition_penalty": 1.5, "ends": (7, 19, 33, 44, 58)},
    ):
        engine = generator(model, **settings)
        alone = [texts_of(engine, [prompt])[0] for prompt in prompts]
        assert len({text.count("<") for text in alone}) > 2
        for most_tokens in (80, 200, None):
            assert texts_of(engine, prompts, most_tokens) == dict(enumerate(alone))


def test_a_row_that_has_ended_makes_room_for_another():
    model, prompts = model_of("whole"), prompts_of(40)
    engine = generator(model, max_new_tokens=40)
    texts, rows = rows_of_passes(model, lambda: texts_of(engine, prompts, 480))
    made = sum(text.count("<") + 1 for text in texts.values())  # an end token is made too
    longest = max(text.count("<") + 1 for text in texts.values())
    assert 8 <= max(rows) <= 11  # 480 tokens of 20 + 40, later of 1 + 40
    assert sum(rows) < 1.3 * made
    assert 2 * made < longest * len(prompts)  # what batches that wait for their longest answer would take


def test_rows_leave_a_batch_to_which_none_can_come():
    model, prompts = model_of("whole"), prompts_of(12)
    texts, rows = rows_of_passes(model, lambda: texts_of(generator(model, max_new_tokens=40), prompts))
    assert rows[0] == 12 or rows.count(12)
    assert sum(rows) < 0.6 * 12 * max(text.count("<") + 1 for text in texts.values())


def test_the_shortest_answers_come_first():
    engine = generator(model_of("whole"), max_new_tokens=40)
    lengths = [reply.text.count("<") for _, reply in engine.replies_as_they_end(prompts_of(12))]
    assert lengths[0] < max(lengths) == lengths[-1]


def test_padding_of_rows_that_left_is_cut():
    model = model_of("whole")
    caches, opened = [], open_cache(model)["cache"]
    engine = generator(model, ends=(), max_new_tokens=14, context=24)
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: caches.append(kwargs["cache"].get_seq_length()), with_kwargs=True
    )
    texts_of(engine, [[5] * 22, [7, 8]])  # the first has room for two tokens
    hook.remove()
    assert type(opened) is DynamicCache
    assert caches[-1] == 2 + 14 - 2  # all but the last token of the short row, which no pass reads


def test_a_layer_keeps_what_that_of_transformers_does():
    ours, theirs = open_cache(model_of("whole"))["cache"].layers[0], DynamicLayer()
    drawn = torch.Generator().manual_seed(0)
    places = set()
    for tokens in (5, *[1] * (ROOM + 10)):
        keys, values = (torch.randn(2, 3, tokens, size, generator=drawn) for size in (8, 6))
        for mine, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert mine.equal(other)
        places.add(ours.keys.data_ptr())
    assert len(places) == 2  # copied once in all these tokens
    ours.batch_select_indices(torch.tensor([1]))
    theirs.batch_select_indices(torch.tensor([1]))
    keys, values = torch.randn(1, 3, 1, 8), torch.randn(1, 3, 1, 6)
    for mine, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
        assert mine.equal(other)


def test_models_whose_rows_cannot_join_have_no_cache_of_ours():
    assert open_cache(model_of("state")) == {}
    config = AutoConfig.for_model("llama4_text", **SIZES, num_local_experts=2, intermediate_size_mlp=48)
    assert open_cache(AutoModelForCausalLM.from_config(config)) == {}  # attention in chunks
