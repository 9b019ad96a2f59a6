"""What the benchmarks run on: random-weight models of given sizes, a small tokenizer, and chat-like rows.

Everything follows from the arguments, so that every tool gets the same folder and the same file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
# The marks around the answer are for tools that find the trained tokens by them; they print nothing.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYLLABLES = "ba de ki lo mu na pe ri so tu va we xi yo zu cha fen gor hal jin".split()


class Size(NamedTuple):
    """Geometry of a model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int

    @property
    def linear_parameters(self) -> int:
        """Parameters in matrix products of the layers, without embedding and head."""
        head_size = self.hidden // self.heads
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * head_size
        return self.layers * (attention + 3 * self.hidden * self.intermediate)


SIZES = {
    "2m": Size(4, 192, 512, 4, 2),
    "60m": Size(8, 512, 1376, 8, 4),
    "500m": Size(24, 896, 4864, 14, 2),
    "qwen2.5-0.5b": Size(24, 896, 4864, 14, 2),
    "qwen2.5-1.5b": Size(28, 1536, 8960, 12, 2),
    "qwen2.5-7b": Size(28, 3584, 18944, 28, 4),
    "qwen2.5-14b": Size(48, 5120, 13824, 40, 8),
}


def model_config(size: Size, vocabulary: int) -> Any:
    """Return the settings of a Qwen2 of this geometry."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=2,
    )


def make_tokenizer(folder: Path) -> Any:
    """Write a byte-level BPE tokenizer, which knows the words of the rows, and ChatML into a folder; return it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = _words(np.random.default_rng(0))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[START, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words)] * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)
    return fast


def make_model(
    folder: Path, size: Size, vocabulary: int, dtype: str = "float32", device: str = "cpu"
) -> Path:
    """Write a random model, its tokenizer and its chat template; a folder that is there already is kept."""
    import torch
    from transformers import Qwen2ForCausalLM

    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))  # a large model never exists in fp32
    with torch.device(device):
        model = Qwen2ForCausalLM(model_config(size, vocabulary))
    torch.set_default_dtype(torch.float32)
    tokenizer = make_tokenizer(folder)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    if device != "cpu":  # nothing of it stays where the tools are measured
        del model
        torch.accelerator.empty_cache()
    return folder


def copy_model(source: Path, folder: Path, dtype: str) -> Path:
    """Write a model with its weights in `dtype`: some tools compute in the type of the file, whatever is asked."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder, dirs_exist_ok=True)
    for path in source.glob("*.safetensors"):  # read there: what is written must not be mapped
        weights = {name: value.to(getattr(torch, dtype)) for name, value in load_file(path).items()}
        save_file(weights, folder / path.name, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}, indent=1), encoding="utf-8")
    return folder


def draw_lengths(number: int, seed: int = 0, shortest: int = 40, longest: int = 400) -> list[int]:
    """Return chat-like lengths in tokens, log-normal around 150."""
    random = np.random.default_rng(seed)
    return np.clip(random.lognormal(np.log(150), 0.6, number), shortest, longest).astype(int).tolist()


def make_rows(path: Path, number: int, seed: int = 0, lengths: Iterable[int] | None = None) -> Path:
    """Write rows of one question and one answer of equal length each, as JSON Lines of `messages`."""
    random = np.random.default_rng(seed + 1)
    words = np.array(_words(np.random.default_rng(0)))  # a list would become an array at every draw
    with path.open("w", encoding="utf-8") as file:
        for length in lengths or draw_lengths(number, seed):
            half = max(1, (length - 10) // 2)  # ChatML prints about ten tokens around the two texts
            question, answer = (" ".join(random.choice(words, half)) for _ in range(2))
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def _words(random: np.random.Generator) -> list[str]:
    return sorted({"".join(random.choice(SYLLABLES, random.integers(1, 4))) for _ in range(1500)})


def count_tokens(model_folder: Path, rows: Path) -> list[int]:
    """Return the tokens of each row as the chat template of the model prints it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    conversations = [json.loads(line)["messages"] for line in rows.read_text(encoding="utf-8").splitlines()]
    texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in conversations]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def convert_alpaca(source: Path, target: Path, number: int) -> Path:
    """Write the first rows of an alpaca-like JSON file as `messages`; rows without an answer are left out."""
    rows = json.loads(source.read_text(encoding="utf-8"))
    with target.open("w", encoding="utf-8") as file:
        for row in [row for row in rows if row["output"].strip()][:number]:
            question = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": row["output"]},
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return target
