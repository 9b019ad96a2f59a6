"""Token ids of ordinary text, word by word out of a cache.

A byte-level BPE cuts a text into words by regular expressions and encodes each word for itself, so equal words have
equal ids, and most words of a text have been seen before. Where a space always begins a word, what stands between two
spaces is looked up as a whole and only cut where it is new. All this is done only where it is certain to give what the
tokenizer's library gives: for tokenizers made of nothing but the parts handled here, whose expressions cut a probe in
the same places in both libraries; and for texts of characters that have had their Unicode properties since before
either library was written. Everything else is left to the tokenizer's library.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate, chain, product
from typing import Any

import numpy as np
import regex
import tokenizers

MOST_WORDS, LONGEST_WORD = 50_000, 64
# ASCII, Latin, Greek, Cyrillic, general punctuation, Chinese and Japanese, full-width ASCII: none of them changes under
# NFC, joins the character before it, or is another character's other case by Unicode's exceptions
SETTLED = re.compile(
    "[\t\n\r -~\u00a1-\u00ac\u00ae-\u017e\u0391-\u03a1\u03a3-\u03ce\u0400-\u045f\u2010-\u2027\u2030-\u203a"
    "\u3000-\u301c\u3041-\u3094\u30a1-\u30fa\u30fc-\u30fe\u4e00-\u9fa5\uff01-\uff5e]*"
)
PROBE_CHARACTERS = "aSé中7½ \u3000\t\n\r'.，_$"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WHOLE = ({"behavior": "Isolated", "invert": False}, {"behavior": "Removed", "invert": True})
_BEHIND_TEXT = re.compile(r"(?<=\S) ")
_FIRST = "\0"
_LOOKS = re.compile(r"\(\?(?!:|i:|!\\S\))|\\[bBAzZG\d]|[$^]")
_CLASS = re.compile(r"\\[\\\[\]]|\[(?:\\.|[^\]\\])*\]")


class _Unsettled(Exception):
    """A text has characters that are left to the library."""


class _Known(dict[str, bytes]):
    """Ids of words as int32; one that is not there is encoded when it is looked up."""

    def __init__(self, model: tokenizers.models.Model) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, word: str) -> bytes:
        characters = word.encode().decode("latin-1").translate(BYTE_CHARACTERS)
        ids = np.array([token.id for token in self._model.tokenize(characters)], "<i4").tobytes()
        if len(word) <= LONGEST_WORD:
            _remember(self, word, ids)
        return ids


class _Pieces(dict[str, bytes]):
    """Ids of what stands between the spaces of a text, with the space before it; the first piece begins with `_FIRST`.

    Args:
        patterns: regular expressions that cut a text into words, one after the other; each has one group.
        added: finds, in a group, the tokens that are recognised before a text is cut.
        added_ids: their ids.
    """

    def __init__(
        self,
        model: tokenizers.models.Model,
        patterns: list[regex.Pattern[str]],
        added: re.Pattern[str],
        added_ids: dict[str, int],
    ) -> None:
        super().__init__()
        self.words = _Known(model)
        self._patterns = patterns
        self._added = added
        self._added_ids = {text: np.array([number], "<i4").tobytes() for text, number in added_ids.items()}

    def __missing__(self, piece: str) -> bytes:
        text = piece[1:] if piece.startswith(_FIRST) else f" {piece}"
        if not SETTLED.fullmatch(text):
            raise _Unsettled
        found: list[bytes] = []
        for number, part in enumerate(self._added.split(text)):
            if number % 2:
                found.append(self._added_ids[part])
            else:
                found += map(self.words.__getitem__, cut_words(self._patterns, part))
        ids = b"".join(found)
        if len(piece) <= LONGEST_WORD:
            _remember(self, piece, ids)
        return ids


def _remember(known: dict[str, bytes], text: str, ids: bytes) -> None:
    if len(known) >= MOST_WORDS:
        known.clear()
    known[text] = ids


class Words:
    """Encodes ordinary text of one tokenizer.

    Args:
        is_cut_at_spaces: a space behind other text always begins a word, so that pieces stand for themselves.
    """

    def __init__(self, pieces: _Pieces, *, is_cut_at_spaces: bool) -> None:
        self._pieces = pieces
        self._is_cut_at_spaces = is_cut_at_spaces

    def encode(self, text: str) -> np.ndarray | None:
        """Return the token ids of a text without BOS or EOS, int32; None for a text that the library must encode."""
        if _FIRST in text:
            return None
        if not self._is_cut_at_spaces:
            first, others = text, []
        elif _has_wide_space(text):
            first, *others = _BEHIND_TEXT.split(text)
        else:
            first, *others = text.split(" ")
        pieces = self._pieces
        try:
            return np.frombuffer(b"".join([pieces[_FIRST + first], *map(pieces.__getitem__, others)]), "<i4")
        except _Unsettled:
            return None


def _has_wide_space(text: str) -> bool:
    """Return whether a space stands behind white space (of settled characters). Written out: five times as fast."""
    return "  " in text or "\n " in text or "\t " in text or "\r " in text or "\u3000 " in text


def build_words(backend: tokenizers.Tokenizer) -> Words | None:
    """Return the encoder of a tokenizer, None for one that has parts which are not handled here."""
    patterns = _patterns_of(backend)
    added = list(backend.get_added_tokens_decoder().items())
    is_plain = len({token.normalized for _, token in added}) < 2 and not any(
        token.lstrip or token.rstrip or token.single_word for _, token in added
    )
    if patterns is None or not is_plain or not _is_byte_level_bpe(backend):
        return None
    probe = cut_words(patterns, _probe())
    if not _are_words(backend, probe):
        return None
    texts = sorted((token.content for _, token in added if token.content), key=len, reverse=True)
    finder = re.compile(f"({'|'.join(map(re.escape, texts)) or '(?!)'})")
    pieces = _Pieces(backend.model, patterns, finder, {token.content: number for number, token in added})
    is_cut_at_spaces = _spaces_begin_words(patterns, probe) and not any(" " in text for text in texts)
    return Words(pieces, is_cut_at_spaces=is_cut_at_spaces)


def cut_words(patterns: list[regex.Pattern[str]], text: str) -> list[str]:
    """Return the words of a text, of which it is the whole."""
    words = [text]
    for pattern in patterns:
        words = list(filter(None, chain.from_iterable(map(pattern.split, words))))
    return words


def _is_byte_level_bpe(backend: tokenizers.Tokenizer) -> bool:
    model, normalizer = backend.model, backend.normalizer
    return (
        isinstance(model, tokenizers.models.BPE)
        and not (model.dropout or model.byte_fallback or model.unk_token)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and (normalizer is None or isinstance(normalizer, tokenizers.normalizers.NFC))
    )


def _patterns_of(backend: tokenizers.Tokenizer) -> list[regex.Pattern[str]] | None:
    """Return the expressions of a pre-tokenizer that ends in a byte-level one, None for any other."""
    if backend.pre_tokenizer is None:
        return None
    described = json.loads(backend.pre_tokenizer.__getstate__())
    *steps, last = described["pretokenizers"] if described["type"] == "Sequence" else [described]
    texts = [_pattern_of(step) for step in steps]
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or None in texts:
        return None
    if last["use_regex"]:
        texts.append(_GPT2)
    try:
        patterns = [regex.compile(f"({text})") for text in texts]
    except regex.error:
        return None
    return patterns if all(one.groups == 1 and not one.search("") for one in patterns) else None


def _pattern_of(step: dict[str, Any]) -> str | None:
    if step["type"] == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"
    is_split = step["type"] == "Split" and {name: step[name] for name in ("behavior", "invert")} in _WHOLE
    return step["pattern"].get("Regex") if is_split else None


def _probe() -> str:
    """Return every triple of kinds of characters, and the usual contractions."""
    triples = "a中".join("".join(triple) for triple in product(PROBE_CHARACTERS, repeat=3))
    return f"I've it's we'LL he'd 'Tis don't 12345 3.14  x\n\n y \r\n z{triples}"


def _are_words(backend: tokenizers.Tokenizer, words: list[str]) -> bool:
    """Return whether the tokenizer's library cuts the whole of these words in the same places."""
    starts = [start for _, (start, _) in backend.pre_tokenizer.pre_tokenize_str("".join(words))]
    return starts == [0, *accumulate(map(len, words))][:-1]


def _spaces_begin_words(patterns: list[regex.Pattern[str]], probe: list[str]) -> bool:
    """Return whether a space that follows anything but white space begins a word, whatever stands around it.

    So it is where no expression looks at more than it takes (but for white space that ends before white space), and
    no word of the probe goes on behind its first such space.
    """
    if any(_LOOKS.search(_CLASS.sub("", pattern.pattern)) for pattern in patterns):
        return False
    kinds = product(PROBE_CHARACTERS, (2, 5), PROBE_CHARACTERS)
    runs = cut_words(patterns, "".join(f"{one * number} {other}" for one, number, other in kinds))
    return not any(_BEHIND_TEXT.search(word) for word in (*probe, *runs))


def _byte_characters() -> dict[int, str]:
    """Return the character that byte-level vocabularies write for each byte. Source: GPT-2's encoder."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(256 + number) for number, byte in enumerate(hidden)}


BYTE_CHARACTERS = _byte_characters()
