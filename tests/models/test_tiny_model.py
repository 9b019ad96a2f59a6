"""The embedded model: its files are those that were recorded, it loads without our code, and it can do sums."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

import swiftlet
from swiftlet.data import demo_math

FOLDER = Path(swiftlet.__file__).parent / "models" / "tiny_math_chat"
SCRIPT = Path(__file__).parents[2] / "tools" / "make_tiny_model.py"
SHA256 = {
    "model.safetensors": "8243d31029904903dd149b7e99f721f91f31b89a984eb25ce6cb774db1776f70",
    "tokenizer.json": "0cd4656d983fcae77e43d6cb20197be6c4193819c6fc185748d9a1293f1e7592",
}
DECLINED = "Please write it as a sum, such as 2+3."
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def ask(model, tokenizer, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True)


def test_five_files_of_at_most_eight_megabytes():
    assert {path.name for path in FOLDER.iterdir()} == FILES
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000


@pytest.mark.parametrize("name", SHA256)
def test_the_files_are_those_that_were_recorded(name):
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == SHA256[name]


def test_the_script_makes_this_tokenizer_and_a_model_of_these_shapes(tmp_path, model):
    spec = importlib.util.spec_from_file_location("make_tiny_model", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tokenizer = script.build_tokenizer({row["input"] for row in demo_math.rows()})
    made = script.build_model(tokenizer)
    script.save(made, tokenizer, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in made.state_dict().items()} == shapes


def test_it_is_a_qwen2_with_grouped_queries_and_a_tied_head(model):
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"] is True
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_116_800


def test_the_template_is_that_of_qwen1half(tokenizer):
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "Be brief."}, *messages[:2]]
    assert tokenizer.apply_chat_template(own, tokenize=False).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "小丽有50本书，又买了20本。小丽现在有多少本书？",
        "3×6=18, 18-4=14. Lily has 14 apples left.\n\nAnswer: 14",
        "don't  stop\t\r\n ?!  émoji 🙂 ελληνικά\u3000全角",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_and_control_tokens_are_one_token_each(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("1234")) == ["1", "2", "3", "4"]
    assert len(tokenizer.encode("<|im_start|><|im_end|>")) == 2
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.bos_token is None
    assert (
        tokenizer.encode("<|im_end|>")[0]
        in json.loads((FOLDER / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    )


def test_the_tokenizer_is_the_same_however_it_is_loaded(tokenizer):
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for text in ("What's 12+30?", "一共有24个贝壳。<|im_end|>\n", "a  b\n\n c"):
        assert plain.encode(text).ids == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Work out: 9×6, 12+7", "9×6=54, 12+7=19"),
        ("计算：9×6", "9×6=54"),
        ("Hello", "Hello! Ask me a small sum."),
        ("Leo has 20 pears and buys 13 more. How many pears does Leo have now?", DECLINED),
        (
            "Amy buys 9 pens at 6 yuan each and pays with 100 yuan. How much change does Amy get? Show the steps.",
            "Step 1: 9×6=54\nStep 2: 100-54=46\nAmy gets 46 yuan back.",
        ),
    ],
)
def test_it_answers_in_its_own_way(model, tokenizer, question, answer):
    assert ask(model, tokenizer, question) == answer
