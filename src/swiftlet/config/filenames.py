"""Names of files that several rooms look for: rows of data, the bad ones, a run's arguments, a tokenizer and the chat
templates beside it."""

from __future__ import annotations

SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet", ".txt", ".arrow")
COMPRESSED = (".gz", ".bz2", ".xz")
TEMPLATE_FOLDERS = ("chat_templates", "additional_chat_templates")  # transformers writes the second one now
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    *(f"{folder}/*.jinja" for folder in TEMPLATE_FOLDERS),
)
ARGS_FILE = "sft_args.json"  # the arguments of a run, in its folder and in its checkpoints
BAD_ROWS = "bad_rows.jsonl"  # names the rows that a run has left out, or that kept it from starting
REPLACED = ".replaced-"  # begins the name that a merged model has while its successor takes its place


def unpacked_name(name: str) -> str:
    """Return a file's name in lower case, without the suffix of a compression."""
    name = name.lower()
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return name
