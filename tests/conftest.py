"""What several rooms' tests share: a tiny random model, its tokenizer, and rows, made here."""

from __future__ import annotations

import json
import os
import signal
import subprocess

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell that starts tests in the background ignores Ctrl-C for all of them; programs under test hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# Machines that run tests are shared and slow at times; a slow test is not a wrong one.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

WORDS = "<pad> <unk> <|im_start|> <|im_end|> system user assistant hello world what is your name I am tiny".split()
WORDS += [f"w{number}" for number in range(48)]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A word-level tokenizer of 64 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )


@pytest.fixture(scope="session")
def tiny_qwen2():
    """A random Qwen2 of two layers with grouped query attention and an untied head."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.4,
        attn_implementation="sdpa",
    )
    return Qwen2ForCausalLM(config).eval()


CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def save_folder(folder, kind, tokenizer, **sizes):
    """Write a folder as a hub has it: config, safetensors, tokenizer with a chat template."""
    import torch
    import transformers

    torch.manual_seed(0)
    usual = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 3,
    }
    config = getattr(transformers, f"{kind}Config")(**{**usual, **sizes})
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tiny_tokenizer):
    """The folder of a dense model."""
    return save_folder(tmp_path_factory.mktemp("model"), "Qwen2", tiny_tokenizer)


@pytest.fixture(scope="session")
def experts_folder(tmp_path_factory, tiny_tokenizer):
    """The folder of a mixture of experts, with a shared one beside those that are chosen."""
    return save_folder(
        tmp_path_factory.mktemp("experts"),
        "Qwen2Moe",
        tiny_tokenizer,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
    )


@pytest.fixture(scope="session")
def hybrid_folder(tmp_path_factory, tiny_tokenizer):
    """The folder of a model that cannot tell packed samples apart: a state space layer, attention, experts."""
    return save_folder(
        tmp_path_factory.mktemp("hybrid"),
        "GraniteMoeHybrid",
        tiny_tokenizer,
        layer_types=["mamba", "attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=24,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_chunk_size=8,
    )


@pytest.fixture(scope="session")
def mamba_folder(tmp_path_factory, tiny_tokenizer):
    """The folder of a model of state space layers alone, whose memory no plan knows."""
    return save_folder(
        tmp_path_factory.mktemp("mamba"),
        "Mamba2",
        tiny_tokenizer,
        num_attention_heads=None,
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=1,
        chunk_size=8,
    )


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
def swift_here(monkeypatch, capfd):
    """Run a command line in this process, with these variables alone: a new interpreter takes half a second longer."""
    from swiftlet import cli

    def run(environ, *words):
        with monkeypatch.context() as patch:
            for name in os.environ:
                patch.delenv(name)
            for name, value in environ.items():
                patch.setenv(name, value)
            capfd.readouterr()
            code = cli.main(words)
        out, errors = capfd.readouterr()
        return subprocess.CompletedProcess(words, code, out, errors)

    return run


@pytest.fixture
def plan_fault(monkeypatch):
    """Plan faults for this test, counted from here."""
    from collections import Counter

    from swiftlet import faults

    def plan(text: str) -> None:
        monkeypatch.setattr(faults, "_hits", Counter())
        monkeypatch.setenv(faults.VARIABLE, text)

    yield plan
