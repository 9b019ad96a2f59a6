"""What a model folder must not do: run code, read other files, take all the memory."""

import errno
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swiftlet.errors import SwiftletError
from swiftlet.models.adapter import read_adapter_tensors
from swiftlet.models.base_hash import base_hash, weights_hash
from swiftlet.models.generation_file import read_generation_config
from swiftlet.models.safety import (
    check_may_run_code,
    for_library,
    inside,
    read_config,
    read_header,
    read_json,
    weight_files,
    without_code_fields,
)


def make_folder(folder):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, folder / "model.safetensors")
    return folder


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model-q4.gguf"])
def test_other_weight_formats_are_refused_unread(name, tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    with pytest.raises(SwiftletError, match=f"has its weights only as {name}") as caught:
        weight_files(folder)
    assert not (tmp_path / "ran").exists()
    assert "save_pretrained" in caught.value.hint
    assert ("gguf_file" in caught.value.hint) == name.endswith("gguf")


def test_left_over_pickles_of_a_trainer_are_not_taken_for_weights(tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "training_args.bin").write_bytes(b"x")
    assert weight_files(folder) == [folder / "model.safetensors"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(SwiftletError, match=r"has no weights \(\*.safetensors\)"):
        weight_files(folder)


BAD_NAMES = ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "x\0.safetensors", "%2e%2e/x"]
BAD_NAMES += ["..\\x.safetensors", "a" * 300 + ".safetensors", "", "x\n.safetensors"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out_of_the_folder_are_refused(name, tmp_path):
    with pytest.raises(SwiftletError, match="outside of itself"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["../x.safetensors", "/tmp/x.safetensors", "x\0.safetensors"])
def test_the_weight_index_cannot_name_files_elsewhere(name, tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(SwiftletError, match="outside of itself"):
        weight_files(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_said(content, tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(SwiftletError, match="index.json"):
        weight_files(folder)


def test_an_index_of_pickles_or_of_absent_files_is_refused(tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    with pytest.raises(SwiftletError, match="not safetensors"):
        weight_files(folder)
    index.write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(SwiftletError, match="lacks model-00001-of-00002.safetensors"):
        weight_files(folder)


def test_a_link_may_not_lead_out_except_into_the_hubs_own_cache(tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "model.safetensors").symlink_to("../secret.safetensors")
    with pytest.raises(SwiftletError, match="is a link that leads out"):
        weight_files(folder)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "models--a--b" / "blobs" / "1")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    assert weight_files(snapshot) == [snapshot / "model.safetensors"]
    (snapshot / "config.json").symlink_to("../../../secret.safetensors")
    with pytest.raises(SwiftletError, match="is a link that leads out"):
        read_config(snapshot)


def test_headers_tell_names_shapes_and_sizes(tmp_path):
    header = read_header(make_folder(tmp_path / "m") / "model.safetensors")
    assert header["a"].shape == (3,) and header["b"].num_bytes == 16 and header["b"].dtype == "F32"


def header_of(content, data=b""):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 2**60) + b"{}", "its header would have"),
        (b"abc", "its header would have"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "its header would have"),
        (struct.pack("<Q", 1000) + b"{}", "the header is cut off"),
        (header_of(b"not json at all"), "damaged header"),
        (header_of(b"[" * 100_000), "damaged header"),
        (header_of({"a": {"dtype": "F32", "shape": [3]}}), "damaged header"),
        (header_of({"a": {"dtype": "F32", "shape": [3], "data_offsets": [12, 0]}}), "offsets 12 to 0"),
        (header_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}), "offsets 0.0 to 4.0"),
        (header_of({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}}), "shape \\[1.5\\]"),
        (
            header_of({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, b"1234"),
            "its header says",
        ),
    ],
)
def test_files_that_are_no_safetensors_are_refused_in_bounded_memory(content, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(SwiftletError, match=message):
        read_header(path)


def test_a_sparse_file_of_a_terabyte_is_refused_at_once(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**39))
        file.truncate(2**40)
    with pytest.raises(SwiftletError, match="its header would have"):
        read_header(path)


def test_folders_that_are_no_model_say_what_they_are(tmp_path):
    with pytest.raises(SwiftletError, match="is not a folder"):
        read_config(tmp_path / "none")
    with pytest.raises(SwiftletError, match="has no config.json"):
        read_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SwiftletError, match="holds an adapter") as caught:
        read_config(tmp_path)
    assert "--ckpt_dir" in caught.value.hint
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SwiftletError, match="names no model_type"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "not an object"),
        (b"\xff", "not valid JSON"),
        (b"[" * 10**6, "nested"),
    ],
)
def test_json_that_cannot_be_read(content, message, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SwiftletError, match=message):
        read_json(tmp_path / "config.json")


def test_json_of_absurd_size_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(SwiftletError, match="too many for a settings file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(SwiftletError, match="cannot be read"):
        read_json(tmp_path / "none.json")


def test_fields_that_choose_code_are_dropped_at_any_depth():
    config = {
        "model_type": "x",
        "hidden_size": 4,
        "auto_map": {},
        "rope": {"theta": 1, "trust_remote_code": True},
    }
    config |= {"_attn_implementation_autoset": True, "_experts_implementation": "a/b", "kernel_config": {}}
    assert without_code_fields(config) == {"model_type": "x", "hidden_size": 4, "rope": {"theta": 1}}


def test_floats_that_json_has_no_word_for_are_decoded_at_any_depth():
    inf = {"__float__": "Infinity"}
    config = {"limit": [0.0, inf], "inner": {"low": {"__float__": "-Infinity"}, "auto_map": {}}, "eps": 1e-6}
    assert for_library(config) == {"limit": [0.0, float("inf")], "inner": {"low": float("-inf")}, "eps": 1e-6}
    assert str(for_library({"none": {"__float__": "NaN"}})["none"]) == "nan"
    for other in ({"__float__": "1"}, {"__float__": [1]}, {"__float__": "NaN", "more": 1}):
        assert for_library({"kept": other}) == {"kept": other}


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_attention_heads", 0), ("num_hidden_layers", 10**9), ("hidden_size", 64.0), ("vocab_size", "many"),
     ("num_key_value_heads", -1), ("head_dim", True)],
)  # fmt: skip
@pytest.mark.parametrize("is_nested", [False, True])
def test_sizes_from_which_no_model_can_be_built_are_refused(name, value, is_nested, tmp_path):
    config = {"model_type": "x", **({"text_config": {name: value}} if is_nested else {name: value})}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SwiftletError, match=f"config.json: {name} is .*, not a whole number from ") as caught:
        read_config(tmp_path)
    assert "get the file again" in caught.value.hint


def test_sizes_may_be_absent_or_differ_by_layer(tmp_path):
    config = {"model_type": "x", "head_dim": None, "intermediate_size": [8, 16]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("name", ["/tmp/evil.Model", "sub/evil.Model", "../evil.Model", "evil", 3])
def test_trusted_code_is_a_file_of_the_folder(name, tmp_path):
    folder = make_folder(tmp_path / "m")
    with pytest.raises(SwiftletError, match="from a place that is no file of the folder"):
        check_may_run_code(folder, {"auto_map": {"AutoModelForCausalLM": name}})


def test_trusted_code_that_is_not_there_is_named(tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "configuration_x.py").write_text("")
    code = {"AutoConfig": "configuration_x.Config", "AutoModelForCausalLM": "modeling_x.Model"}
    with pytest.raises(SwiftletError, match=r"lacks the code that its config.json names: modeling_x.py"):
        check_may_run_code(folder, {"auto_map": code})
    (folder / "modeling_x.py").write_text("")
    check_may_run_code(folder, {"auto_map": code})


def test_trusted_code_is_no_link_to_a_file_elsewhere(tmp_path):
    folder = make_folder(tmp_path / "m")
    (tmp_path / "evil.py").write_text("")
    (folder / "modeling_x.py").symlink_to("../evil.py")
    with pytest.raises(SwiftletError, match="is a link that leads out"):
        check_may_run_code(folder, {"auto_map": {"AutoModelForCausalLM": "modeling_x.Model"}})


@pytest.mark.parametrize("reader", [read_header, base_hash, weights_hash, read_adapter_tensors])
def test_a_disk_that_gives_no_weights_is_named(reader, tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "m")
    file = folder / "model.safetensors"
    (folder / "adapter_model.safetensors").write_bytes(file.read_bytes())

    def broken(self, *args, **kwargs):
        if self.suffix == ".safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(SwiftletError, match="model.safetensors cannot be read: Input/output error") as caught:
        reader(file if reader is read_header else folder)
    assert "look at the disk" in caught.value.hint


@pytest.mark.parametrize("content", ['{"pad_token_id": "x"}', '{"max_new_tokens": 0}'])
def test_a_damaged_generation_config_is_named(content, tmp_path):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(SwiftletError, match=r"generation_config.json is damaged: "):
        read_generation_config(tmp_path)
