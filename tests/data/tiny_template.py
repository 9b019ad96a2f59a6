"""A real tokenizer of a few words and a chat template, in a folder, and rows to go with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from swiftlet.data.template import Template, build_template
from swiftlet.data.tokenizer import load_tokenizer

WORDS = ["<unk>", "<bos>", "<eos>", "<user>", "<assistant>", "hello", "yes", "no"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<assistant> {{ m.content }}<eos>"
    "{% else %}<user> {{ m.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_template(folder: Path, chat: str = CHAT) -> Template:
    """Return a template whose tokenizer has the words w0 to w499."""
    folder.mkdir(parents=True, exist_ok=True)
    words = WORDS + [f"w{number}" for number in range(500)]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<bos>", "<eos>", "<user>", "<assistant>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "chat_template": chat}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return build_template(load_tokenizer(folder), name=None, system=None)


def row(number: int, num_words: int = 4) -> dict[str, Any]:
    """Return a row with an answer of `num_words` words, different for each number."""
    answer = " ".join(f"w{(number // 500**at) % 500}" for at in range(3))
    return {"query": f"hello w{number % 500}", "response": " ".join([answer, *["yes"] * (num_words - 3)])}


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON Lines; a text is written as it is."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
