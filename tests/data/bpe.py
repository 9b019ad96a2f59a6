"""Small real tokenizers of the two usual kinds, in folders: byte-level BPE, and BPE that puts a space before a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from swiftlet.data.tokenizer import Tokenizer as OurTokenizer
from swiftlet.data.tokenizer import load_tokenizer

CONTROL = ["<s>", "</s>", "<|start|>", "<|end|>", "<|user|>", "<|bot|>", "<sep>"]
TEXTS = ["What is the answer? It is yes, and no. 你好吗？我很好。 hello there, user and assistant.\n\n"] * 4


def byte_level() -> Tokenizer:
    """Return a tokenizer that takes a text as it is."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=sorted(alphabet), show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens(CONTROL)
    return backend


def prefixing() -> Tokenizer:
    """Return a tokenizer that puts a space before a text and has bytes for what it does not know."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({*"▁", *"".join(TEXTS).replace(" ", "").replace("\n", "")})
    merges = [("▁", "y"), ("▁y", "e"), ("▁ye", "s"), ("▁", "n"), ("▁n", "o"), ("y", "e"), ("ye", "s")]
    vocabulary = dict.fromkeys(["<unk>", *pieces, *letters, *("".join(merge) for merge in merges)])
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(CONTROL)
    return backend


KINDS = {"byte_level": byte_level, "prefixing": prefixing}


def tokenizer_of(folder: Path, kind: str, chat: str | list[Any] | None, **config: Any) -> OurTokenizer:
    """Return our tokenizer of a new model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    KINDS[kind]().save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", **config}
    if chat is not None:
        settings["chat_template"] = chat
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return load_tokenizer(folder)
