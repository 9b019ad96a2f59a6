"""The hash that tells one base model from another: the same in any sharding, another for any change."""

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import save

from swiftlet.errors import CheckpointError
from swiftlet.models.base_hash import base_hash, check_base


def test_the_hash_of_a_base_does_not_depend_on_its_shards(tmp_path):
    model = save(tmp_path / "whole")
    model.save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    assert base_hash(tmp_path / "whole") == base_hash(tmp_path / "cut")
    check_base(tmp_path / "cut", base_hash(tmp_path / "whole"))
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 1e-3
    save_file(tensors, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="this checkpoint was trained on another base"):
        check_base(tmp_path / "whole", base_hash(tmp_path / "cut"))


@pytest.mark.parametrize("quarter", range(4))
def test_the_hash_of_a_base_sees_every_part_of_a_tensor(tmp_path, quarter):
    save(tmp_path / "base", hidden_size=64)
    before = base_hash(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    flat = tensors["model.embed_tokens.weight"].flatten()
    size = len(flat) // 4
    flat[quarter * size : (quarter + 1) * size] = 0
    tensors["model.embed_tokens.weight"] = flat.view_as(tensors["model.embed_tokens.weight"])
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    assert base_hash(tmp_path / "base") != before
