"""Names of files that several rooms look for: rows of data, and the chat templates beside a tokenizer."""

from __future__ import annotations

SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet", ".txt", ".arrow")
COMPRESSED = (".gz", ".bz2", ".xz")
TEMPLATE_FOLDERS = ("chat_templates", "additional_chat_templates")  # transformers writes the second one now


def unpacked_name(name: str) -> str:
    """Return a file's name in lower case, without the suffix of a compression."""
    name = name.lower()
    for packed in COMPRESSED:
        name = name.removesuffix(packed)
    return name
