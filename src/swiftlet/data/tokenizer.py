"""A tokenizer read from its folder with the `tokenizers` library alone: no torch, no transformers, cheap to send.

A `Tokenizer` is plain data (where the file lies, what its special tokens are); each process reads the file once, when
it first needs it. Text is never given a BOS or EOS here: what belongs there, the template prints.

Text written by people may spell a control token, such as `<|im_end|>`. To make of it the ordinary pieces it would be
if the vocabulary had no such token, a second tokenizer knows the control tokens by other names: characters of a
private-use plane, which take their place wherever the template printed them. Every result of it is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from swiftlet.data.rendering import LEAVE_OUT, TemplateError
from swiftlet.data.tokenizer_files import Extra, TokenizerFiles, open_backend, read_tokenizer_files
from swiftlet.data.words import Words, build_words

_SURROGATES = re.compile("[\ud800-\udfff]")
_FIRST_ALIAS, _MOST_ALIASES = 0x10E000, 0x1F00
_ALIASES = re.compile("[\U0010e000-\U0010fffd]")
Span = tuple[int, int]


class Pieces(NamedTuple):
    """Token ids of a text and the characters [start, end) that each stands for."""

    ids: list[int]
    offsets: list[Span]


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back, as the model's own tokenizer does it.

    Args:
        special_tokens: what templates may print, by name: bos_token, eos_token, pad_token, unk_token.
        control: texts of the control tokens, which only a template may use.
        adds_prefix: True where encoding puts a space before a text, so that a piece is not what it is inside a text.
        adds_bos: True where the model was trained on plain text that begins with BOS.
        extra: texts to add to the vocabulary of the file, with whether each is a control token.
        serialized: the tokenizer as JSON where the folder has no tokenizer.json to read it from.
    """

    folder: Path
    chat_template: str | dict[str, str] | None
    special_tokens: Mapping[str, str]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    vocab_size: int
    fingerprint: str
    control: tuple[str, ...]
    adds_prefix: bool
    adds_bos: bool
    extra: Extra = ()
    serialized: str | None = field(default=None, repr=False)

    def encode(self, text: str, *, split_special: bool = False) -> list[int]:
        """Return the token ids of `text`, without BOS or EOS.

        Raises:
            TemplateError: the text has half of a surrogate pair, or a control token in it cannot be split.
        """
        if split_special and self.control_pattern.search(text):
            return self.encode_around([], text).ids
        return list(self.encode_array(text).tolist())

    def encode_array(self, text: str) -> np.ndarray:
        """Return `encode(text)` as int32, with the same errors."""
        ids = None if self._words is None else self._words.encode(text)
        return np.asarray(self._encode(self.backend, text).ids, np.int32) if ids is None else ids

    def encode_with_offsets(self, text: str) -> Pieces:
        """Return the token ids of `text` and the characters of each.

        Raises:
            TemplateError: as `encode`.
        """
        encoding = self._encode(self.backend, text)
        return Pieces(encoding.ids, encoding.offsets)

    def encode_around(self, printed: Sequence[Span], text: str) -> Pieces:
        """Return ids and offsets of `text`, in which only the control tokens at `printed` are control tokens.

        Raises:
            TemplateError: as `encode`.
        """
        if _ALIASES.search(text):
            raise TemplateError(
                "a text spells a control token and uses the last private-use characters of Unicode",
                LEAVE_OUT,
                reason="special_token_in_text",
            )
        aliased, lengths = self._with_aliases(printed, text)
        encoding = self._encode(self._renamed.backend, aliased)
        if any(token in self._control_ids for token in encoding.ids if token not in self._renamed.ids):
            raise TemplateError(
                "a text spells a control token that this tokenizer cannot split into ordinary pieces",
                LEAVE_OUT,
                reason="special_token_in_text",
            )
        ids = [self._renamed.ids.get(token, token) for token in encoding.ids]
        return Pieces(ids, [(lengths[start], lengths[end]) for start, end in encoding.offsets])

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of token ids."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special))

    def id_of(self, token: str) -> int | None:
        """Return the id of one token, None if the vocabulary lacks it."""
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)

    @cached_property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's tokenizer, read once in each process."""
        return _read_backend(self.folder, self.fingerprint, self.extra, self.serialized)

    @cached_property
    def _words(self) -> Words | None:
        return _read_words(self.folder, self.fingerprint, self.extra, self.serialized)

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Finds any control token in a text."""
        return _any_of(self.control)

    @cached_property
    def added(self) -> dict[str, tokenizers.AddedToken]:
        """All tokens that are recognised before the text is cut into pieces, by their text."""
        return {
            token.content: token
            for token in self.backend.get_added_tokens_decoder().values()
            if token.content
        }

    @cached_property
    def has_greedy(self) -> bool:
        """Whether an added token takes the white space behind it."""
        return any(token.rstrip for token in self.added.values())

    @cached_property
    def added_pattern(self) -> re.Pattern[str]:
        """Finds any added token, control or not, in a text."""
        return _any_of(tuple(self.added))

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(found for text in self.control if (found := self.id_of(text)) is not None)

    @cached_property
    def _renamed(self) -> _Renamed:
        return _read_renamed(self.folder, self.fingerprint, self.extra, self.serialized, self.control)

    def _encode(self, backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
        try:
            return backend.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            is_half = _SURROGATES.search(text)
            what = "half of a surrogate pair" if is_half else "characters that cannot be encoded"
            raise TemplateError(f"a text of the row has {what}", LEAVE_OUT, reason="utf8") from error

    def _with_aliases(self, printed: Sequence[Span], text: str) -> tuple[str, list[int]]:
        """Return the text with aliases in the place of `printed`, and for each of its places the place in `text`."""
        parts: list[str] = []
        places: list[int] = []
        done = 0
        for start, end in printed:
            parts += [text[done:start], self._renamed.aliases[text[start:end]]]
            places += range(done, start + 1)
            done = end
        places += range(done, len(text) + 1)
        return "".join([*parts, text[done:]]), places

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder.

    Raises:
        UsageError: the folder has no tokenizer, or one that cannot be read.
    """
    return build_tokenizer(read_tokenizer_files(Path(folder)))


def build_tokenizer(files: TokenizerFiles) -> Tokenizer:
    """Make a tokenizer of what was read from its folder."""
    backend = _read_backend(files.folder, files.fingerprint, files.extra, files.serialized)
    special = dict(files.special_tokens)
    ids = {name: backend.token_to_id(text) for name, text in special.items()}
    control = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    control |= {text for name, text in special.items() if ids[name] is not None}
    bos = ids.get("bos_token")
    adds_bos = files.adds_bos
    if adds_bos is None:
        adds_bos = bos is not None and backend.encode("a").ids[:1] == [bos]
    return Tokenizer(
        folder=files.folder,
        chat_template=files.chat_template,
        special_tokens=special,
        bos_id=bos,
        eos_id=ids.get("eos_token"),
        pad_id=ids.get("pad_token"),
        vocab_size=backend.get_vocab_size(with_added_tokens=True),
        fingerprint=files.fingerprint,
        control=tuple(sorted(filter(None, control))),
        adds_prefix=_adds_prefix(backend),
        adds_bos=bool(adds_bos and bos is not None),
        extra=files.extra,
        serialized=files.serialized,
    )


def _adds_prefix(backend: tokenizers.Tokenizer) -> bool:
    """Return whether a letter alone becomes another token than behind a line break."""
    alone = backend.encode("a", add_special_tokens=False).ids
    behind = backend.encode("\na", add_special_tokens=False).ids
    return bool(alone[-1:] != behind[-1:] or len(alone) > 1)


@lru_cache(maxsize=8)
def _read_backend(
    folder: Path, fingerprint: str, extra: Extra, serialized: str | None
) -> tokenizers.Tokenizer:
    """Return the tokenizer of the files; `fingerprint` is in the key so that a changed file is read again."""
    backend = open_backend(folder, serialized)
    backend.no_truncation()
    backend.no_padding()
    for text, special in extra:
        token = tokenizers.AddedToken(text, special=special, normalized=False)
        (backend.add_special_tokens if special else backend.add_tokens)([token])
    return backend


@lru_cache(maxsize=8)
def _read_words(folder: Path, fingerprint: str, extra: Extra, serialized: str | None) -> Words | None:
    return build_words(_read_backend(folder, fingerprint, extra, serialized))


class _Renamed(NamedTuple):
    """A tokenizer that knows the control tokens by their aliases, and how its ids are the true ones."""

    backend: tokenizers.Tokenizer
    aliases: dict[str, str]
    ids: dict[int, int]


@lru_cache(maxsize=8)
def _read_renamed(
    folder: Path, fingerprint: str, extra: Extra, serialized: str | None, control: tuple[str, ...]
) -> _Renamed:
    true = _read_backend(folder, fingerprint, extra, serialized)
    described = json.loads(true.to_str())
    aliases = {text: chr(_FIRST_ALIAS + number) for number, text in enumerate(control[:_MOST_ALIASES])}
    names = {
        token["content"]: aliases.get(token["content"], token["content"])
        for token in described["added_tokens"]
    }
    for token in described["added_tokens"]:
        token["content"] = names[token["content"]]
    _forget(described["model"], set(aliases))
    renamed = tokenizers.Tokenizer.from_str(json.dumps(described))
    ids = {
        found: own
        for text, other in names.items()
        if (found := renamed.token_to_id(other)) is not None and (own := true.token_to_id(text)) is not None
    }
    return _Renamed(renamed, {text: names[text] for text in aliases if text in names}, ids)


def _forget(model: dict[str, Any], names: set[str]) -> None:
    """Take away the ways in which the model itself would put a control token together."""
    if "merges" in model:
        joined = ((m, "".join(m if isinstance(m, list) else m.split(" "))) for m in model["merges"])
        model["merges"] = [merge for merge, result in joined if result not in names]
    if model.get("type") == "Unigram":
        model["vocab"] = [[piece, -1e6 if piece in names else score] for piece, score in model["vocab"]]


@lru_cache(maxsize=32)
def _any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
