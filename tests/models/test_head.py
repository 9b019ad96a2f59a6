"""Whether a head is the model's own is told by what it gives, not by the dropout of an adapter on it."""

import copy

from tiny_models import logits, make, start_adapters

from swiftlet.models.head import find_head, is_its_head
from swiftlet.models.tuner import LoraSettings, apply_lora


def test_an_adapted_head_is_the_models_own_while_its_dropout_is_on(tiny_qwen2):
    settings = LoraSettings(dropout=0.5, target_modules=("lm_head",))
    model = apply_lora(copy.deepcopy(tiny_qwen2), settings).train()
    start_adapters(model, 1.0)
    head = find_head(model)
    assert head is not None
    assert is_its_head(model, head)
    assert model.training
    assert not is_its_head(model, head._replace(scale=1.5))


def test_a_small_cap_of_the_logits_is_seen():
    settings = {"attention_window_size": 8, "lru_width": 32, "head_dim": 8, "logits_soft_cap": 30.0}
    model = make("recurrent_gemma", block_types=["recurrent", "attention"], **settings)
    head = find_head(model)
    assert head is not None and head.softcap == 30.0
    assert is_its_head(model, head)
    largest = float(logits(model).abs().max())
    assert largest < 6  # a cap changes so small logits by one in a hundred
    assert not is_its_head(model, head._replace(softcap=None))
