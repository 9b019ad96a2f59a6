"""A tiny random model in a folder, rows in a file, and runs through the Python API in this process."""

from __future__ import annotations

import json

import pytest

CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tiny_tokenizer):
    """A folder as a hub has it: config, safetensors, tokenizer with a chat template."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=3,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    """Forty rows of words that the tokenizer knows."""
    import random

    order = random.Random(1)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(40):
            query = " ".join(f"w{order.randrange(48)}" for _ in range(order.randrange(2, 9)))
            response = " ".join(f"w{order.randrange(48)}" for _ in range(order.randrange(1, 7)))
            file.write(json.dumps({"query": query, "response": response}) + "\n")
    return path


@pytest.fixture
def fine_tune(model_folder, rows_file, tmp_path, monkeypatch):
    """Run sft on the tiny model; options override."""
    monkeypatch.setenv("SWIFTLET_CACHE", str(tmp_path / "cache"))

    def run(folder="run", **options):
        from swiftlet import sft

        settings = {
            "model_id_or_path": str(model_folder),
            "dataset": str(rows_file),
            "device": "cpu",
            "dtype": "fp32",
            "output_dir": str(tmp_path / folder),
            "add_output_dir_suffix": False,
            "max_steps": 6,
            "eval_steps": 3,
            "save_steps": 3,
            "logging_steps": 1,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "dataset_test_ratio": 0.1,
            "learning_rate": 1e-2,
        }
        return sft(**{**settings, **options})

    return run
