"""What a manifest vouches for: all files of a checkpoint, on the disk, and the settings they belong to."""

import pytest

from swiftlet.train import manifest
from swiftlet.train.manifest import Identity, read_manifest, seal


def test_every_file_and_folder_of_a_checkpoint_is_flushed_and_every_file_listed(tmp_path, monkeypatch):
    (tmp_path / "optimizer" / "deep").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer/state", "optimizer/deep/part"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    flushed = []
    monkeypatch.setattr(manifest, "sync", flushed.append)
    made = seal(tmp_path, step=4, world_size=2, identity=Identity("d", "b", {}), version="1")
    assert {*tmp_path.rglob("*"), tmp_path} == set(flushed)
    assert sorted(made.files) == ["model.safetensors", "optimizer/deep/part", "optimizer/state"]
    assert read_manifest(tmp_path) == made


@pytest.mark.parametrize("secret", ["", "hf_" + "a1" * 12])
def test_a_setting_is_the_same_in_another_order_also_where_a_hash_stands_for_it(tmp_path, secret):
    mine = {"deepspeed": {"stage": 2, "optimizer": {"lr": 1, "betas": [0.9]}, "name": secret}}
    theirs = {"deepspeed": {"name": secret, "optimizer": {"betas": [0.9], "lr": 1}, "stage": 2}}
    seal(tmp_path, step=1, world_size=1, identity=Identity("d", "b", mine), version="1")
    kept = read_manifest(tmp_path).identity
    assert (kept.settings == mine) == (not secret), "a manifest holds no secrets"
    assert kept.differences(Identity("d", "b", theirs)) == []
    theirs["deepspeed"]["stage"] = 3
    assert len(kept.differences(Identity("d", "b", theirs))) == 1
