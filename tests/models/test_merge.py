"""A merged model answers as its adapter does, in memory and out of its folder."""

from __future__ import annotations

import pytest
import torch
from tiny_models import logits, save

from swiftlet.models.load import load_model
from swiftlet.models.merge import merge_adapter
from swiftlet.models.save import write_model
from swiftlet.models.tuner import LoraSettings, apply_lora


def load(folder):
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("targets", [("q_proj",), ("lm_head",), ("EMBEDDING",), ("lm_head", "EMBEDDING")])
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_tied_head_is_parted_from_the_embedding_where_one_of_them_is_changed(is_tied, targets, tmp_path):
    base, target = tmp_path / "base", tmp_path / "merged"
    save(base, tie_word_embeddings=is_tied)
    model = apply_lora(load(base), LoraSettings(rank=4, target_modules=targets))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    expected = logits(model.eval())
    merged = merge_adapter(model).eval()
    torch.testing.assert_close(logits(merged), expected)
    assert merged.config.tie_word_embeddings == (is_tied and targets == ("q_proj",))
    target.mkdir()
    write_model(merged, target, source=base, is_adapter=False)
    torch.testing.assert_close(logits(load(target)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_experts_are_merged(dtype, tmp_path):
    base, target = tmp_path / "base", tmp_path / "merged"
    save(base, "deepseek_v3")
    plain = load_model(base, dtype=dtype, device=torch.device("cpu"))
    dtypes = {name: parameter.dtype for name, parameter in plain.named_parameters()}
    model = apply_lora(plain, LoraSettings(rank=4, dropout=0.0, target_modules=("ALL",)))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = logits(model.eval()).float()
    merged = merge_adapter(model).eval()
    assert {name: parameter.dtype for name, parameter in merged.named_parameters()} == dtypes
    close = 1e-4 if dtype == torch.float32 else 0.1 * float(expected.abs().max())
    torch.testing.assert_close(logits(merged).float(), expected, rtol=0, atol=close)
    target.mkdir()
    write_model(merged, target, source=base, is_adapter=False)
    again = load_model(target, dtype=dtype, device=torch.device("cpu"))
    assert torch.equal(logits(again), logits(merged))
