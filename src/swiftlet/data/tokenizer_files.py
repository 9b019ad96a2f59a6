"""What a model folder says about its tokenizer, from all the files in which it may be said.

Newer files win over older ones: chat_template.jinja over tokenizer_config.json, tokenizer_config.json over
special_tokens_map.json. A folder with only the files of a slow tokenizer is converted by transformers, which is
imported for that case alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from swiftlet.config.filenames import TEMPLATE_FOLDERS, TOKENIZER_FILES
from swiftlet.errors import UsageError, describe, first_line
from swiftlet.files import leads_out

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE_NAMES = ("additional_special_tokens", "extra_special_tokens")
_SLOW_FILES = (
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tiktoken.model",
    "spiece.model",
    "qwen.tiktoken",
)
Extra = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class TokenizerFiles:
    """Everything of a folder that decides over token ids, and the chat template.

    Args:
        extra: texts to add to the vocabulary of tokenizer.json, with whether each is a control token.
        serialized: the tokenizer as JSON where the folder has no tokenizer.json.
        adds_bos: what tokenizer_config.json says of add_bos_token; None where it says nothing.
    """

    folder: Path
    chat_template: str | dict[str, str] | None
    special_tokens: dict[str, str]
    extra: Extra
    serialized: str | None
    adds_bos: bool | None
    fingerprint: str


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the tokenizer's files of a model folder.

    Raises:
        UsageError: the folder has no tokenizer, a file of it cannot be read, or is a link to one elsewhere.
    """
    _check_links(folder)
    config = _read_json(folder / "tokenizer_config.json")
    special = _special_tokens(folder, config)
    path = folder / "tokenizer.json"
    text = _read_text(path) if path.is_file() else _convert(folder)
    known = _known_tokens(path, text)
    extra = _missing_tokens(folder, known, config, special)
    digest = hashlib.sha256(text.encode())
    digest.update(json.dumps([extra, sorted(special.items())]).encode())
    return TokenizerFiles(
        folder=folder,
        chat_template=_chat_template(folder, config),
        special_tokens=special,
        extra=extra,
        serialized=None if path.is_file() else text,
        adds_bos=config.get("add_bos_token"),
        fingerprint=digest.hexdigest(),
    )


def _check_links(folder: Path) -> None:
    """Check that the files are the folder's own: they are copied into checkpoints, which are given to others."""
    for pattern in TOKENIZER_FILES:
        for path in folder.glob(pattern):
            if leads_out(path, folder):
                raise UsageError(
                    f"{path} is a link that leads out of its folder, to {path.resolve()}",
                    "copy the file into the folder",
                )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say of a file whose content is not of the kinds that it should be that it is damaged.

    Raises:
        UsageError: it is.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged: {type(error).__name__} {describe(str(error), 160)}",
            "download the model again",
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", "download the model again") from error


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}", "download the model again") from error
    if not isinstance(found, dict):
        raise UsageError(
            f"{path} holds {describe(found)} where an object is expected", "download the model again"
        )
    return found


def _convert(folder: Path) -> str:
    """Return the JSON of a slow tokenizer's conversion."""
    if not any((folder / name).is_file() for name in _SLOW_FILES):
        raise UsageError(
            f"no tokenizer in {folder}: neither tokenizer.json nor one of {', '.join(_SLOW_FILES)}",
            "give the folder of a whole model with --model_id_or_path",
        )
    from transformers import AutoTokenizer

    try:
        converted = AutoTokenizer.from_pretrained(str(folder), use_fast=True, trust_remote_code=False)
        return str(converted.backend_tokenizer.to_str())
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f"the tokenizer in {folder} cannot be converted to a tokenizer.json: {describe(str(error), 160)}",
            "look for a copy of the model that has a tokenizer.json",
        ) from error


class _FromLibrary(NamedTuple):
    """Says of a file that the library does not know it: a plain Exception, which the library raises, and no other."""

    path: Path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is Exception and error is not None:
            raise UsageError(
                f"{self.path} is no tokenizer that is known here: {first_line(error)}",
                "pip install -U tokenizers, if the model is newer than it; or download the model again",
            ) from error


def open_backend(folder: Path, serialized: str | None) -> tokenizers.Tokenizer:
    """Return the tokenizer of a folder's tokenizer.json, or of the text that stands for it.

    Raises:
        UsageError: it is of a kind that the library does not know.
    """
    with _FromLibrary(folder / "tokenizer.json"):
        if serialized is not None:
            return tokenizers.Tokenizer.from_str(serialized)
        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def _known_tokens(path: Path, text: str) -> set[str]:
    """Return the tokens of a tokenizer.json, after looking whether it is one."""
    try:
        found = json.loads(text)
        vocabulary = found["model"]["vocab"]
        added = [token["content"] for token in found.get("added_tokens", [])]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a tokenizer: {type(error).__name__} {describe(str(error))}",
            "download the model again",
        ) from error
    pieces = vocabulary if isinstance(vocabulary, dict) else [piece[0] for piece in vocabulary]
    return {*pieces, *added}


def _content(value: Any) -> str | None:
    """Return a token's text, which may stand alone or in an object that describes it."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) and found else None


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    older = _read_json(folder / "special_tokens_map.json")
    found = {name: _content(config[name] if name in config else older.get(name)) for name in _NAMES}
    return {name: text for name, text in found.items() if text is not None}


def _more_special_tokens(folder: Path, config: dict[str, Any]) -> list[str]:
    """Return the special tokens that have no part of their own, in a list or under names that a model gives them."""
    older = _read_json(folder / "special_tokens_map.json")
    texts: list[str | None] = []
    for key in _MORE_NAMES:
        declared = config.get(key) or older.get(key)
        declared = list(declared.values()) if isinstance(declared, dict) else declared
        texts += map(_content, declared if isinstance(declared, list) else [])
    return [text for text in texts if text is not None]


def _missing_tokens(folder: Path, known: set[str], config: dict[str, Any], special: dict[str, str]) -> Extra:
    """Return the tokens that the smaller files name and tokenizer.json lacks, in the order of their ids."""
    declared = config.get("added_tokens_decoder") or {}
    with _reading(folder / "tokenizer_config.json"):
        by_id = sorted(declared.items(), key=lambda item: int(item[0]))
        wanted = [(_content(token), bool(token.get("special"))) for _, token in by_id]
    older = _read_json(folder / "added_tokens.json")
    with _reading(folder / "added_tokens.json"):
        wanted += [(text, False) for text, _ in sorted(older.items(), key=lambda item: int(item[1]))]
    wanted += [(text, True) for text in (*special.values(), *_more_special_tokens(folder, config))]
    missing: dict[str, bool] = {}
    for text, is_special in wanted:
        if text and text not in known:
            missing.setdefault(text, is_special)
    return tuple((text, is_special or text in special.values()) for text, is_special in missing.items())


def _chat_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    """Return the chat template, or the named ones of a model that has several."""
    named: dict[str, str] = {}
    declared = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(declared, list):
        with _reading(folder / "tokenizer_config.json"):
            named = {entry["name"]: entry["template"] for entry in declared}
    elif isinstance(declared, dict):
        named = dict(declared)
    elif isinstance(declared, str):
        named = {"default": declared}
    if (folder / "chat_template.jinja").is_file():  # for conversations with tools too
        named = {"default": _read_text(folder / "chat_template.jinja")}
    for name in TEMPLATE_FOLDERS:
        for path in sorted((folder / name).glob("*.jinja")):
            named[path.stem] = _read_text(path)
    return named["default"] if set(named) == {"default"} else named or None
