"""Models whose files are damaged: the message names the file, no traceback."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from swiftlet import cli
from swiftlet.errors import NonFiniteError


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b'{"model_type": "qwen2", "hid', "is not valid JSON"), (b"\xff\xfe\x00", "is not valid JSON"),
     (b"[]", "not an object")],
)  # fmt: skip
@pytest.mark.parametrize("command", ["sft", "plan"])
def test_a_damaged_config_of_the_model_is_named(
    model_folder, rows_file, tmp_path, monkeypatch, capsys, command, content, expected
):
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "config.json").write_bytes(content)
    words = ["--model_id_or_path", str(folder), "--dataset", str(rows_file)]
    words += ["--output_dir", str(tmp_path / "run"), *(["--device", "cpu"] if command == "sft" else [])]
    assert cli.main([command, *words]) == 1
    told = capsys.readouterr().err
    assert f"{folder / 'config.json'}" in told and expected in told and "get the file again" in told
    assert "Traceback" not in told


def test_a_mark_before_the_config_of_the_model_is_no_damage(fine_tune, model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = folder / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert fine_tune(model_id_or_path=str(folder), max_steps=1).num_steps == 1


@pytest.mark.parametrize("part", ["embed_tokens", "layers.0.input_layernorm", "layers.1.mlp.up_proj", ""])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}])  # our decoder, and the modules of transformers
def test_weights_that_are_no_numbers_are_named(fine_tune, model_folder, tmp_path, part, options):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if part in name:
            tensors[name].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        NonFiniteError, match=f"of step 1 is not finite; .*{part or 'embed_tokens'}.* among them"
    ):
        fine_tune(model_id_or_path=str(folder), max_steps=1, **options)
